"""From documents to shards: options, worker processes, units, the split, the manifest."""
