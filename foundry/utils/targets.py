"""The mark of a target that is not predicted: batches set it, and losses and scores leave it out."""

IGNORE = -100  # the default of PyTorch's `ignore_index`
