"""Files on disk: atomic writes, digests, locks; folders of runs, checkpoints and tokenizers.

The lowest layer: it imports no other folder of this project; every other folder may import it.
"""
