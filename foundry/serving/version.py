"""What is served: one loaded version of a model and the facts that every answer can be traced to.

Imports no torch and no web code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from foundry.serving.scores import TokenTexts
from foundry.utils.bootstrap import Interval
from foundry.utils.records import Record

if TYPE_CHECKING:
    from foundry.inference.constraints import Grammars
    from foundry.inference.request import Backend
    from foundry.tokenizers import Tokenizer


class Facts(Record):
    """What is known about a version; `/v1/models` returns it.

    Attributes:
        source: where it came from, without a path: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder's name.
        version: of the registry; None for a folder.
        fingerprint: hash of the identity of its training run.
        weights_sha256: hash of the weights that are served.
        context_length: tokens of prompt and answer together.
        weights: number format of the matrices (float32, bfloat16, int8, int4, or a format of GGUF).
        bits_per_byte: of the test documents, with its interval; None if it was not evaluated.
        license: of the texts, as an SPDX identifier if there is one; None if it is not known.
        chat_trained: whether the model learnt to answer in the format of the chat template.
    """

    source: str
    version: str | None = None
    fingerprint: str
    weights_sha256: str
    tokenizer_sha256: str
    context_length: int
    vocabulary: int
    parameters: int
    weights: str = "float32"
    backend: str = "foundry"
    bits_per_byte: Interval | None = None
    license: str | None = None
    chat_trained: bool = False


@dataclass(frozen=True)
class Version:
    """A loaded model that answers requests.

    Attributes:
        name: what a client gives as `model`.
        backend: answers requests; its context and vocabulary are those of `facts`.
        loaded: Unix time in seconds when it began to serve.
        aliases: other names that a client may give, such as `models:/NAME@champion`.
    """

    name: str
    backend: Backend
    tokenizer: Tokenizer
    facts: Facts
    loaded: int
    aliases: tuple[str, ...] = ()

    @cached_property
    def texts(self) -> TokenTexts:
        """The tokens of the vocabulary as text."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def grammars(self) -> Grammars:
        """Makes the constraints of `response_format`.

        Raises:
            MissingPackageError: if the grammar library is not installed.
        """
        from foundry.inference.constraints import Grammars

        return Grammars(self.tokenizer)

    def answers_to(self, name: str) -> bool:
        """Whether a client that asks for the model `name` means this one."""
        return name == self.name or name in self.aliases
