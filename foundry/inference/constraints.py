"""Answers that are JSON, or JSON of a schema: which tokens may come next (`response_format` of the HTTP interface).

The grammar library llguidance follows the answer byte by byte. It knows the bytes of each piece of the tokenizer, so a
character may be spelt in byte pieces, but never wrongly. Control symbols and the unknown token have no bytes and are
never allowed; whether the answer may end is `JsonMatcher.complete`.

Guarantee: a complete answer parses, and is valid under the schema. An answer that is cut off (`length`) is a beginning
of such an answer. A keyword that the library cannot enforce is refused, not ignored. White space between the parts of
the JSON is at most a space, or one or two line ends and an indentation, as in llama.cpp's grammars: a small model would
otherwise write spaces without end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from foundry.config import ConfigError, FoundryError, MissingPackageError
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import UNK_ID

if TYPE_CHECKING:
    from llguidance import LLMatcher

WHITE_SPACE = r" |\n{1,2}[ \t]{0,20}"
MAX_SCHEMA = 200_000  # characters; a schema of this size is compiled in a fraction of a second
# These win over what a schema says under "x-guidance".
OPTIONS = {"whitespace_pattern": WHITE_SPACE, "lenient": False, "coerce_one_of": False}


class _Pieces:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    special_token_ids = ()
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.tokens = [_bytes_of(tokenizer, token) for token in range(tokenizer.vocab_size)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token adds to a text; none for what is never generated."""
    if token == UNK_ID or tokenizer.is_control(token):
        return b""
    if tokenizer.is_byte(token):
        return bytes.fromhex(tokenizer.piece(token)[3:5])  # <0xAB>
    return tokenizer.text_of(token).encode()


class Grammars:
    """Makes constraints for the answers of one model.

    Args:
        tokenizer: of the model.

    Raises:
        MissingPackageError: if llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError:
            raise MissingPackageError("llguidance", "serve") from None
        self._vocabulary = LLTokenizer(_Pieces(tokenizer), slices=LLTokenizer.json_slices())
        self._size, self._eos_id = tokenizer.vocab_size, tokenizer.eos_id

    def json_object(self) -> JsonConstraint:
        """Any JSON object."""
        return self._constraint("json_object", {"type": "object"})

    def json_schema(self, schema: Mapping[str, Any] | str) -> JsonConstraint:
        """JSON that is valid under a schema, given as a mapping or as JSON text. No address in it is opened.

        Raises:
            ConfigError: (a `ValueError`) if it is not a schema, no answer is valid, or a keyword cannot be enforced;
                the message names it.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as e:
                raise ConfigError(f"the JSON schema is not JSON: {e}") from None
        if not isinstance(schema, Mapping):
            raise ConfigError(f"a JSON schema must be a JSON object, got {type(schema).__name__}")
        return self._constraint("json_schema", schema)

    def _constraint(self, kind: Literal["json_object", "json_schema"], schema: Mapping[str, Any]) -> JsonConstraint:
        from llguidance import LLMatcher, LLParserLimits

        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
            if len(text) > MAX_SCHEMA:
                raise ConfigError(f"the JSON schema has {len(text):,} characters; at most {MAX_SCHEMA:,} are allowed")
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
        except (TypeError, ValueError, RecursionError) as e:
            raise e if isinstance(e, ConfigError) else ConfigError(f"the JSON schema is not valid JSON: {e}") from None
        limits = LLParserLimits(verbose_errors=False)  # an error must not repeat the answer
        start = JsonMatcher(LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits), self._size, self._eos_id)
        if start.error:
            raise ConfigError(f"the JSON schema cannot be enforced: {start.error}")
        try:
            possible = start.complete or bool(start.allowed().any())
        except FoundryError:
            possible = False
        if not possible:
            raise ConfigError(f"the JSON schema allows no answer, or none that can be found: {start.error}")
        return JsonConstraint(kind, text, start)


@dataclass(frozen=True)
class JsonConstraint:
    """A `Constraint` of a request.

    Attributes:
        kind: the type in `response_format`.
        schema: as JSON text.
    """

    kind: Literal["json_object", "json_schema"]
    schema: str
    _start: JsonMatcher = field(repr=False, compare=False)

    def start(self) -> JsonMatcher:
        """The beginning of an answer."""
        return self._start.copy()


class JsonMatcher:
    """A `Matcher` of a request."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_id: int) -> None:
        self._matcher, self._size, self._eos_id = matcher, vocab_size, eos_id

    @property
    def error(self) -> str:
        """Why the library gave up, in one line; empty if it did not."""
        return " ".join(self._matcher.get_error().split())[:300]

    @property
    def complete(self) -> bool:
        """Whether the answer so far is valid and may end."""
        return self._matcher.is_accepting()

    @property
    def over(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> Tensor:
        """The tokens that may come next, without the end symbol: bool (V,).

        Raises:
            FoundryError: if the schema is too complex to be followed here.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
        mask[self._eos_id] = False
        return torch.from_numpy(mask)

    def accept(self, token: int) -> None:
        """Takes the next token.

        Raises:
            FoundryError: if it was not allowed.
        """
        self._matcher.consume_token(token)
        self._check()

    def copy(self) -> JsonMatcher:
        return JsonMatcher(self._matcher.deep_copy(), self._size, self._eos_id)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FoundryError(f"the answer cannot be kept within its JSON schema: {self.error}")
