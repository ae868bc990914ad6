"""The data room: sources, cleaning, deduplication, schemas, token shards and the loader. Light to import."""
