"""The records of `proof.json`: what an export was compared with, and the hash of every file.

The parity checks return these records, the card prints them, and every reader of `proof.json` gets them: the file has
this one schema. The order of the fields is the order of the keys in the file. Imports no torch.
"""

from __future__ import annotations

from typing import Literal

from foundry.utils.bootstrap import Interval
from foundry.utils.records import Record


class WeightsProof(Record):
    """Tensors of the Hugging Face folder, read back and equal to the source bit for bit."""

    tensors: int
    different: int = 0


class TokenIdsProof(Record):
    """Texts whose token ids in transformers equal SentencePiece's, and which decode to themselves.

    Attributes:
        hostile: how many of the `strings` are the fixed ones of `foundry.export.hostile`.
        of_the_vocabulary: how many of them are made from this vocabulary.
    """

    strings: int
    hostile: int
    of_the_vocabulary: int
    tokens: int
    different: int = 0


class LogitsProof(Record):
    """Positions at which transformers' logits were compared with the model's.

    Attributes:
        largest_difference_below: the next power of ten above the largest absolute difference.
    """

    tokens: int
    tolerance: float
    largest_difference_below: float


class GreedyProof(Record):
    """Greedy tokens that another engine chose, too.

    Attributes:
        ties: prompts whose comparison ended where two logits are within twice the tolerance of each other.
    """

    prompts: int
    tokens: int
    ties: int
    different: int = 0


class SettingsProof(Record):
    """Settings as an engine loaded them that equal the source's."""

    compared: int
    different: int = 0


class GGUFProof(Record):
    """One GGUF file, read back by the `gguf` package.

    Attributes:
        format: number format of the matrices: f32, f16, bf16, q8_0 or q4_0.
        tokens: size of the vocabulary in the file.
        largest_rounding: largest absolute difference to the source.
    """

    format: str
    tensors: int
    tokens: int
    largest_rounding: float


class LlamaCppTokenIds(Record):
    """Texts whose token ids in llama.cpp equal SentencePiece's."""

    strings: int
    tokens: int
    different: int = 0


class LogProbsProof(Record):
    """Contexts after which llama.cpp's log-probabilities of the whole vocabulary were compared with the model's."""

    positions: int
    vocabulary: int
    tolerance: float
    largest_difference_below: float


class LlamaCppFormat(Record):
    """A rounding format in llama.cpp.

    Attributes:
        total_variation: half the sum of the absolute differences between its probabilities and the model's, in the mean
            over contexts.
    """

    total_variation: float


class LlamaCppProof(Record):
    """llama.cpp ran the float32 GGUF as the model runs."""

    proved: Literal[True] = True
    token_ids: LlamaCppTokenIds
    settings: SettingsProof
    log_probs: LogProbsProof
    greedy: GreedyProof
    formats: dict[str, LlamaCppFormat]


class LlamaCppMissing(Record):
    """llama.cpp is not installed, so nothing was compared with it."""

    proved: Literal[False] = False
    why: str


class Proof(Record):
    """All comparisons of an export with the trained model; `gguf` is keyed by the number format."""

    weights: WeightsProof
    token_ids: TokenIdsProof
    logits: LogitsProof
    greedy: GreedyProof
    settings: SettingsProof
    gguf: dict[str, GGUFProof]
    llama_cpp: LlamaCppProof | LlamaCppMissing


class ChatProof(Record):
    """Conversations of the test split in other engines.

    Attributes:
        conversations: whose token ids in each engine equal those that the model was trained on.
        tokens: of these conversations.
        greedy: answers to prompts, compared with transformers.
        llama_cpp_greedy: the same, compared with llama.cpp; None if it is not installed.
    """

    conversations: int
    tokens: int
    engines: list[str]
    different: int = 0
    greedy: GreedyProof
    llama_cpp_greedy: GreedyProof | None = None


class ChatRecord(Record):
    """What an export of a model says that was trained to answer.

    Attributes:
        stage: that trained it: sft, dpo or rl.
        parent_sha256: the weights that it was trained from.
        template_sha256: the chat template that it was trained with.
        data_sha256: the chat data.
        macro_exact: share of answers to test prompts that verifiers accept in full, mean over tasks; None if no task
            has a verifier.
        ended: share of answers that it ends by itself.
        forgetting: bits per byte of the base model's test text above those of the base model.
    """

    stage: Literal["sft", "dpo", "rl"]
    parent_sha256: str
    template_sha256: str
    data_sha256: str
    macro_exact: Interval | None = None
    ended: Interval
    forgetting: Interval
    proof: ChatProof


class BitsPerByte(Record):
    bits_per_byte: float


class FormatCost(Record):
    """What one number format costs.

    Attributes:
        bytes: size of the file.
        difference: bits per byte above the model's, paired by document.
        top1_agreement: share of the positions at which the most likely token is the model's.
    """

    file: str
    bytes: int
    bits_per_byte: float
    difference: Interval
    top1_agreement: float


class FormatCosts(Record):
    """The cost of every rounding format on the same held-out documents.

    Attributes:
        bytes: UTF-8 bytes of the documents.
        float: the model itself in float32.
        formats: by number format.
    """

    documents: int
    tokens: int
    bytes: int
    float: BitsPerByte
    formats: dict[str, FormatCost]


class ExportRecord(Record):
    """The content of `proof.json`, without the hash of the record itself.

    Attributes:
        fingerprint: of the training run.
        index_sha256: of the data index that it was trained on.
        weights_sha256: of the trained weights (`artifacts/model`), not of the exported file.
        bits_per_byte: of the test documents, from the evaluation; None in exports of former versions of Foundry, which
            stay in registries.
        quantised: None if no format was scored; the file then lacks the key.
        chat: of a model that was trained to answer; the file of a base model lacks the key.
        files: {path in the folder: sha256}.
    """

    model_name: str
    fingerprint: str
    index_sha256: str
    tokenizer_sha256: str
    weights_sha256: str
    bits_per_byte: Interval | None = None
    proof: Proof
    quantised: FormatCosts | None = None
    chat: ChatRecord | None = None
    files: dict[str, str]
