"""Three fixed prompts and what the model makes of them without chance, for the model card."""

from __future__ import annotations

from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer

PROMPTS = ("The ", "In the beginning", "1, 2, 3,")
NEW_TOKENS = 48


def greedy_samples(model: MiniLLM, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """[(prompt, continuation of at most `NEW_TOKENS` tokens)], for the prompts that fit the context."""
    generator = Generator(model, tokenizer, "cpu")
    fitting = [p for p in PROMPTS if len(tokenizer.encode(p, bos=True)) < model.cfg.max_seq_len]
    return [(p, generator.generate_text(p, max_new_tokens=NEW_TOKENS, temperature=0)) for p in fitting]
