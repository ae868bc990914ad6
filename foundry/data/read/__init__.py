"""From files to records: archives, encodings, formats, and how large files are cut into units of work."""
