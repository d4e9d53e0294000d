"""From documents to shards: options, worker processes, units of work, splits and the manifest."""
