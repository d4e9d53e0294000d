"""How files come to be whole or absent, what run and tokenizer folders hold, how scripts fail.

Floor 0: imports nothing of ours; every other folder may import it.
"""
