"""A data set on disk: its manifest, its shards, its copy on a local disk."""
