"""Post-training: conversations as training examples, the programs that check answers, and what learns from them."""
