"""The server: protocol, limits, keys, metrics, recording, the page, and the replacement of the model it serves."""
