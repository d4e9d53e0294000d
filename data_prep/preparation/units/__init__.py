"""A finished unit on disk: its record, and its two shards divided by another threshold."""
