"""Tasks: examples that a program makes, from the corpus or from nothing, with answers that a program can check."""
