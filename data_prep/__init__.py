"""Text in, verified token shards out; the tokenizer, the shard format and the order of training.

Floor 1: may import storage.
"""
