"""From addresses to files: sources, mirrors, packages, object stores, and the lock file that holds their hashes."""
