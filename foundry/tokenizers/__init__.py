"""SentencePiece: train, encode, decode, chat markers."""

from foundry.tokenizers.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
