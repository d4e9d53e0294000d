"""Files and folders on disk: atomic writes, digests, locks, run, checkpoint and tokenizer folders.

The lowest layer: it imports no other folder of this project; every other folder may import it.
"""
