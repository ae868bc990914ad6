"""From documents to batches: token shards, the order of samples, packing, and the loader."""
