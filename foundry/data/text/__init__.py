"""Functions on text: words, n-grams, hashing. Cleaning and evaluation use the same ones."""
