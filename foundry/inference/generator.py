"""Text from a model: whole, as a stream, or in a conversation with a person.

Guarantees: the same seed gives the same text; no global random generator is touched; a stream's pieces join to the whole text and
never cut a character; control symbols are never written, and the end symbol ends the text. When the context is full, its newer half is read
again and generation goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

import torch

from foundry.inference.cache import KVCache
from foundry.inference.sampling import Sampling, choose
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.utils.device import get_device

HELP = "type a text to continue it; /temperature 0.8, /top_k 40, /top_p 0.95, /tokens 120 set values; /quit or Ctrl-D ends"


class Generator:
    """Generates text.

    Args:
        model: put on the device and into evaluation mode.
        tokenizer: of the same vocabulary.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        ValueError: if model and tokenizer have different vocabularies.
    """

    def __init__(self, model: MiniLLM, tokenizer: Tokenizer, device: str | torch.device = "auto") -> None:
        if model.cfg.vocab_size != tokenizer.vocab_size:
            raise ValueError(f"the model has {model.cfg.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: they do not belong together")
        self.device = get_device(device) if isinstance(device, str) else device
        self.model, self.tokenizer = model.to(self.device).eval(), tokenizer
        barred = [i for i in range(tokenizer.vocab_size) if (tokenizer.is_control(i) or i == 0) and i != tokenizer.eos_id]
        self._barred = torch.tensor(barred, device=self.device)

    @torch.inference_mode()
    def generate_ids(
        self, ids: list[int], max_new_tokens: int = 100, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None
    ) -> Iterator[int]:
        """New tokens one by one, without the end symbol, which ends the iteration.

        Args:
            ids: prompt, at least one token, its begin symbol included.
            seed: of this generation; None draws a fresh one.

        Raises:
            ValueError: for a value that breaks its rule, or a prompt that fills the context.
        """
        how = Sampling(temperature, top_k, top_p)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        context = self.model.cfg.max_seq_len
        if not 1 <= len(ids) <= context - 1:
            raise ValueError(f"the prompt has {len(ids)} tokens with its begin symbol; between 1 and {context - 1} fit the context of {context}")
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return self._run(list(ids), max_new_tokens, how, generator, context)

    @torch.inference_mode()
    def _run(self, ids: list[int], n: int, how: Sampling, generator: torch.Generator, context: int) -> Iterator[int]:
        cache = KVCache(self.model.cfg, 1, self.device, self.model.tok_embeddings.weight.dtype)
        new = ids
        for _ in range(n):
            if cache.length + len(new) > context:
                cache.clear()
                new = ids[-(context // 2) :]
            logits = self.model(torch.tensor([new], device=self.device), cache=cache)[0][0, -1]
            token = choose(logits.index_fill(0, self._barred, float("-inf")), how, generator)
            if token == self.tokenizer.eos_id:
                return
            yield token
            ids.append(token)
            new = [token]

    def stream(self, prompt: str = "", **options) -> Iterator[str]:
        """Pieces of the continuation as soon as they are whole characters; options are those of `generate_ids`."""
        tokens = self.generate_ids(self.tokenizer.encode(prompt, bos=True), **options)
        return self._pieces(tokens)

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        done: list[int] = []
        told = ""
        for token in tokens:
            done.append(token)
            text = self.tokenizer.decode(done)
            if not text.endswith("\ufffd") and len(text) > len(told):  # else: bytes of a character are still to come
                yield text[len(told) :]
                told = text
        if rest := self.tokenizer.decode(done)[len(told) :]:
            yield rest

    def generate_text(self, prompt: str = "", **options) -> str:
        """The continuation of a prompt, without the prompt; options are those of `generate_ids`."""
        return "".join(self.stream(prompt, **options))

    def interactive_generate(self, source: TextIO = sys.stdin, out: TextIO = sys.stdout) -> None:
        """Continues each line that a person types, until /quit or the end of input."""
        values = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "tokens": 120}
        print(HELP, file=out)
        while True:
            print("> ", end="", file=out, flush=True)
            line = source.readline()
            if not line or line.strip() in ("/quit", "/exit"):
                print(file=out)
                return
            line = line.rstrip("\n")
            try:
                if line.startswith("/"):
                    self._set(values, line, out)
                elif line:
                    options = {k: v for k, v in values.items() if k != "tokens"}
                    for piece in self.stream(line, max_new_tokens=int(values["tokens"]), **options):
                        print(piece, end="", file=out, flush=True)
                    print(file=out)
            except ValueError as e:
                print(f"error: {e}", file=out)

    @staticmethod
    def _set(values: dict[str, float], line: str, out: TextIO) -> None:
        name, _, text = line[1:].partition(" ")
        if name not in values:
            print(HELP, file=out)
            return
        value = type(values[name])(text)
        new = {**values, name: value}
        Sampling(new["temperature"], new["top_k"], new["top_p"])
        values[name] = value
        print(f"{name} = {value}", file=out)
