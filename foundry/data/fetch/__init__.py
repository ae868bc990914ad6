"""From addresses to files: sources, mirrors, packages, object stores, and the lock file with their hashes."""
