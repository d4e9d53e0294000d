"""How files come to be whole or absent, and what a run folder looks like.

Floor 0: imports nothing of ours; every other folder may import it.
"""
