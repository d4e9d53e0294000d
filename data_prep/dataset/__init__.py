"""A data set on disk: its manifest, its shards, and its copy on a local disk."""
