"""Which rank this is, and what ranks do together.

Floor 1: may import storage. The only reader of torchrun's environment variables.
"""
