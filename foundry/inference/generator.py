"""Text from a model, at once or as a stream.

Guarantees: the same seed gives the same text; no global random generator is used; the parts of a stream join to the
same text and never cut a character; control symbols are never written, and the end symbol ends the text. A text may be
longer than the context: when the context is full, its newer half is read again and the older tokens are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from foundry.config import ConfigError
from foundry.config.sampling import Sampling, is_integer
from foundry.inference.cache import KVCache
from foundry.inference.decoder import Decoder
from foundry.inference.sampling import Sampler
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import UNK_ID
from foundry.utils.device import get_device


class Generator:
    """Generates text.

    Args:
        model: is moved to the device and put into evaluation mode.
        tokenizer: of the same vocabulary.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Attributes:
        barred: ids that are never generated: control symbols but the end symbol, and the unknown token.
        fixed_shapes: whether tokens after the prompt go through a `Decoder`; so on CUDA, where it replays a graph.

    Raises:
        ConfigError: (a `ValueError`) if model and tokenizer have different vocabularies, or there is no such device.
    """

    def __init__(self, model: MiniLLM, tokenizer: Tokenizer, device: str | torch.device = "auto") -> None:
        if model.cfg.vocab_size != tokenizer.vocab_size:
            raise ConfigError(
                f"the model has {model.cfg.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: "
                "give the tokenizer that the model was trained with"
            )
        self.device = get_device(device) if isinstance(device, str) else device
        self.model, self.tokenizer = model.to(self.device).eval(), tokenizer
        # Byte fallback makes the unknown token unnecessary.
        banned = [i for i in range(tokenizer.vocab_size) if i == UNK_ID or tokenizer.is_control(i)]
        self.barred = [i for i in banned if i != tokenizer.eos_id]
        self.fixed_shapes = self.device.type == "cuda"
        self._idle: list[Decoder] = []  # one per text that was generated at the same time as others

    def generate_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """New tokens one by one. The end symbol ends the iteration and is not returned.

        All values are checked before the first token.

        Args:
            ids: the prompt with its begin symbol, at least one token.
            max_new_tokens: the largest number of new tokens; it may be larger than the context.
            temperature: 0 is greedy.
            top_k: 0 is off.
            top_p: 1 is off.
            seed: of this generation; None draws a fresh one.

        Raises:
            ConfigError: (a `ValueError`) for a value that breaks its rule, or a prompt that leaves no room in the
                context.
        """
        how = Sampling(temperature, top_k, top_p)
        if not (is_integer(max_new_tokens) and max_new_tokens >= 1):
            raise ConfigError(f"max_new_tokens must be an integer of at least 1, got {max_new_tokens!r}")
        if not (seed is None or (is_integer(seed) and 0 <= seed < 2**63)):
            raise ConfigError(f"seed must be None or an integer in [0, 2^63), got {seed!r}")
        context = self.model.cfg.max_seq_len
        if not 1 <= len(ids) <= context - 1:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens with its begin symbol; between 1 and {context - 1} "
                f"fit the context of {context} (model.max_seq_len) together with a new token: shorten the prompt"
            )
        if wrong := [i for i in ids if not 0 <= i < self.model.cfg.vocab_size]:
            raise ConfigError(f"token ids must be in [0, {self.model.cfg.vocab_size}), got {wrong[0]}")
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(int(seed))
        return self._run(list(ids), int(max_new_tokens), how, generator)

    @torch.inference_mode()
    def _run(self, ids: list[int], n: int, how: Sampling, generator: torch.Generator) -> Iterator[int]:
        context, size = self.model.cfg.max_seq_len, self.model.cfg.vocab_size
        sampler = Sampler(
            how, ids, vocab_size=size, generator=generator, end_ids=[self.tokenizer.eos_id], barred=self.barred
        )
        decoder = self._idle_decoder() if self.fixed_shapes else None
        dtype = self.model.tok_embeddings.weight.dtype
        cache = decoder.cache if decoder else KVCache(self.model.cfg, 1, self.device, dtype)
        new = ids
        try:
            for _ in range(n):
                if cache.length + len(new) > context:
                    cache.clear()
                    new = ids[-(context // 2) :]
                tokens = torch.tensor([new], device=self.device)
                if decoder and len(new) == 1:
                    logits = decoder.step(tokens)[0]
                else:
                    logits = self.model(tokens, cache=cache)[0][0, -1]
                token = sampler.choose(logits)
                if token == self.tokenizer.eos_id:
                    return
                yield token
                sampler.accept(token)
                ids.append(token)
                new = [token]
        finally:
            if decoder:
                self._idle.append(decoder)

    def _idle_decoder(self) -> Decoder:
        """A decoder that no other text uses; it begins a text."""
        try:
            decoder = self._idle.pop()
        except IndexError:  # not asked beforehand: another thread may take the last one
            decoder = Decoder(self.model)
        if not decoder.fits():
            decoder = Decoder(self.model)
        decoder.start()
        return decoder

    def stream(self, prompt: str = "", *, cut: bool = False, **options) -> Iterator[str]:
        """The continuation in parts, each as soon as its characters are complete.

        They join to the result of `generate_text` for the same seed.

        Args:
            prompt: text to continue; the begin symbol is added before it. Chat markers in it are plain text.
            cut: read only the end of a prompt that does not fit the context, see `prompt_ids`; otherwise it is refused.
            options: those of `generate_ids`.

        Raises:
            ConfigError: (a `ValueError`) as `generate_ids`, before the first part, and for a prompt that is not text or
                not valid Unicode.
        """
        return self._pieces(self.generate_ids(self.prompt_ids(prompt, cut), **options))

    def prompt_ids(self, prompt: str, cut: bool = False) -> list[int]:
        """Ids of a prompt, the begin symbol first.

        Args:
            cut: return only the last half a context of tokens of a prompt that leaves no room in the context, as
                happens to a text that becomes longer than the context while it is generated.

        Raises:
            ConfigError: (a `ValueError`) for a prompt that is not text or not valid Unicode.
        """
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt must be text, got {type(prompt).__name__}")
        ids, context = self.tokenizer.encode(prompt, bos=True), self.model.cfg.max_seq_len
        return ids[-(context // 2) :] if cut and len(ids) >= context else ids

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        text = self.tokenizer.stream()
        for token in tokens:
            if piece := text.add(token):
                yield piece

    def generate_text(self, prompt: str = "", **options) -> str:
        """The continuation of a prompt, without the prompt.

        Options and errors are those of `stream`. A character whose last bytes `max_new_tokens` cuts off is left out.
        """
        return "".join(self.stream(prompt, **options))
