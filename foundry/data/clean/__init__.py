"""From records to documents: repair, rules, personal data, duplicates, splits, and an account of every record."""
