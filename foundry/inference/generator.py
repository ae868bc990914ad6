"""Text from a model, at once or as a stream, by the engine in the thread of the caller.

Guarantees: the same seed gives the same text; no global random generator is used; the parts of a stream join to the
same text and never cut a character; control symbols are never written. What ends a text depends on its use: the end
symbol ends a continuation, and the end symbol or the end of the turn an answer in a conversation. A continuation may be
longer than the context: when the context is full, its newer half is read again and the older tokens are dropped. An
answer ends with a full context, since its conversation would lose its beginning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import Sampling, is_integer
from foundry.inference.engine import Engine, deliver
from foundry.inference.request import Constraint, Delta, Event, Finished, Request
from foundry.inference.runner import Runner
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat, end_of_turn
from foundry.tokenizers.history import fit_chat
from foundry.tokenizers.tokenizer import UNK_ID
from foundry.utils.device import get_device

SLOTS = 4  # texts that are written at the same time, by several threads or in turns; more of them wait


class Use(NamedTuple):
    """What the control symbols mean in one kind of text.

    Attributes:
        stop_ids: end a text and are not part of it.
        barred: are never generated: all other control symbols, and the unknown token, which byte fallback replaces.
    """

    stop_ids: tuple[int, ...]
    barred: tuple[int, ...]


class Generator:
    """Generates text.

    Weights that change between two texts are used, unless they are changed in place through `.data`.

    Args:
        model: is moved to the device and put into evaluation mode.
        tokenizer: of the same vocabulary.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Attributes:
        fixed_shapes: whether tokens after the prompt go through a `Decoder`; so on CUDA, where it replays a graph. It
            counts when the first text begins.

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
        self.fixed_shapes = self.device.type == "cuda"
        self._made: Engine | None = None
        self._lock = threading.Lock()  # of the engine

    @cached_property
    def text(self) -> Use:
        """The use of the control symbols in a continuation."""
        return self._use((self.tokenizer.eos_id,) if self.tokenizer.eos_id >= 0 else ())  # -1: there is no end symbol

    @cached_property
    def chat(self) -> Use:
        """The use of the control symbols in an answer."""
        return self._use(end_of_turn(self.tokenizer))

    def _use(self, stop_ids: tuple[int, ...]) -> Use:
        control = (i for i in range(self.tokenizer.vocab_size) if i == UNK_ID or self.tokenizer.is_control(i))
        return Use(stop_ids, tuple(i for i in control if i not in stop_ids))

    def generate_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        chat: bool = False,
        **sampling,
    ) -> Iterator[int]:
        """New tokens one by one. A symbol that ends the text ends the iteration and is not returned.

        All values are checked before the first token.

        Args:
            ids: the prompt with its begin symbol, at least one token.
            max_new_tokens: the largest number of new tokens; it may be larger than the context.
            temperature: 0 is greedy.
            top_k: 0 is off.
            top_p: 1 is off.
            seed: of this generation; None draws a fresh one.
            chat: the prompt is a conversation that ends with the beginning of an answer (`encode_chat`).
            sampling: other fields of `Sampling`.

        Raises:
            ConfigError: (a `ValueError`) for a value that breaks its rule, or a prompt that leaves no room in the
                context.
            FoundryError: while it runs, if the model's weights are damaged.
        """
        how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, **sampling)
        return self._ids(self._request(ids, how, max_new_tokens, seed, chat))

    def stream(
        self,
        prompt: str | Sequence[Message] = "",
        *,
        cut: bool = False,
        max_new_tokens: int = 100,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        constraint: Constraint | None = None,
        **sampling,
    ) -> Iterator[str]:
        """The continuation, or the answer, in parts, each as soon as its characters are complete.

        They join to the result of `generate_text` for the same seed.

        Args:
            prompt: text to continue, or a conversation to answer; the begin symbol is added before it. Chat markers in
                a text or a message are plain text.
            cut: read only the end of a prompt that does not fit the context, see `prompt_ids`; otherwise it is refused.
            max_new_tokens, seed: as for `generate_ids`.
            stop: a text, or texts, that end the continuation and are not part of it.
            constraint: a language that the continuation has to be in, see `foundry.inference.constraints`.
            sampling: fields of `Sampling`.

        Raises:
            ConfigError: (a `ValueError`) as `generate_ids`, before the first part, and for a prompt that is not text or
                not valid Unicode.
        """
        ids, chat = self.prompt_ids(prompt, cut), not isinstance(prompt, str)
        request = self._request(ids, Sampling(**sampling), max_new_tokens, seed, chat)
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        request = replace(request, stop=texts, constraint=constraint)
        return (delta.text for delta in self._deltas(request) if delta.text)

    def generate_text(self, prompt: str | Sequence[Message] = "", **options) -> str:
        """The continuation of a prompt, without the prompt, or the answer to a conversation.

        Options and errors are those of `stream`. A character whose last bytes `max_new_tokens` cuts off is left out.
        """
        return "".join(self.stream(prompt, **options))

    def prompt_ids(self, prompt: str | Sequence[Message], cut: bool = False) -> list[int]:
        """Ids of a prompt, the begin symbol first; those of a conversation end with the beginning of its answer.

        Args:
            cut: shorten a prompt that leaves no room in the context: to its last half a context of tokens, as happens
                to a text that becomes longer than the context while it is generated, or without the oldest turns of a
                conversation (`fit_chat`).

        Raises:
            ConfigError: (a `ValueError`) for a prompt that is neither text nor messages, or not valid Unicode.
        """
        context = self.model.cfg.max_seq_len
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, bos=True)
            return ids[-(context // 2) :] if cut and len(ids) >= context else ids
        if not (isinstance(prompt, Sequence) and prompt and all(isinstance(m, Message) for m in prompt)):
            raise ConfigError(f"prompt must be text or a list of messages, got {type(prompt).__name__}")
        return fit_chat(self.tokenizer, prompt, context).ids if cut else encode_chat(self.tokenizer, prompt)

    def _request(self, ids: Sequence[int], how: Sampling, max_new_tokens: int, seed: int | None, chat: bool) -> Request:
        if not (is_integer(max_new_tokens) and max_new_tokens >= 1):
            raise ConfigError(f"max_new_tokens must be an integer of at least 1, got {max_new_tokens!r}")
        context, size = self.model.cfg.max_seq_len, self.model.cfg.vocab_size
        if not 1 <= len(ids) <= context - 1:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens with its begin symbol; between 1 and {context - 1} "
                f"fit the context of {context} (model.max_seq_len) together with a new token: shorten the prompt"
            )
        if wrong := [i for i in ids if not 0 <= i < size]:
            raise ConfigError(f"token ids must be in [0, {size}), got {wrong[0]}")
        use = self.chat if chat else self.text
        past = "stop" if chat else "slide"
        return Request(tuple(map(int, ids)), how, int(max_new_tokens), seed, stop_ids=use.stop_ids, past_context=past)

    def _ids(self, request: Request) -> Iterator[int]:
        for delta in self._deltas(request):
            for token in delta.tokens:
                yield token.id

    def _deltas(self, request: Request) -> Iterator[Delta]:
        """The parts of an answer. While one waits for its next part, the other texts continue, too."""
        engine, arrived = self._engine(), deque[Event]()
        answer = engine.answer(request, arrived.append)
        try:
            with self._lock:
                engine.add(answer)
            while True:
                with self._lock:
                    while not arrived:
                        deliver(engine.step())
                event = arrived.popleft()
                if isinstance(event, Delta):
                    yield event
                elif isinstance(event, Finished):
                    if event.reason == "error":
                        raise FoundryError(event.message)
                    return
        finally:
            with self._lock:
                answer.cancel()
                deliver(engine.sweep())

    def _engine(self) -> Engine:
        """The engine; it is made for the first text, because it copies some of the weights."""
        with self._lock:
            if self._made is None:
                runner = Runner(self.model, SLOTS, fixed_shapes=self.fixed_shapes)
                self._made = Engine(runner, self.tokenizer, shared_tokens=self.model.cfg.max_seq_len)
            return self._made
