"""The sections of post-training in `params.yaml`: chat data, fine-tuning, preferences and rewards.

They are identity keys of the stages in `chat/dvc.yaml` and `chat/align/dvc.yaml`, and of no stage of pre-training: see
`POST_TRAINING`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from foundry.config.export import ExportFormats, GgufType
from foundry.config.recipe import Recipe
from foundry.config.section import CorpusPath, Fraction, Name, Section

POST_TRAINING = frozenset({"chat", "sft", "chat_evaluate", "chat_export", "reward", "preferences", "dpo", "rl"})

Preset = Annotated[str, Field(pattern=r"^(chat-en|chat-zh|chitchat|gym:[a-z0-9_]+)$", max_length=80)]
Positive = Annotated[float, Field(gt=0, le=100)]


class Chat(Section):
    """The chat data: examples from presets and from files, their checks, and their token shards."""

    presets: list[Preset] = Field(
        default_factory=lambda: ["chat-en"],
        description="built-in sources of examples; chat-en: tasks from the default corpus; chat-zh: poems and "
        "xiehouyu; chitchat: human dialogues; gym:NAME: a generator of reasoning-gym",
    )
    sources: list[CorpusPath] = Field(
        default_factory=list,
        description="globs of your own conversations below corpus/ (messages, ShareGPT, Alpaca, prompt and completion)",
    )
    verifiers: list[CorpusPath] = Field(
        default_factory=list,
        description="Python files below corpus/ with functions that check answers; examples name them FILE:FUNCTION",
    )
    max_examples: int = Field(0, ge=0, le=10**9, description="largest number of training examples; 0: all")
    weights: dict[str, Positive] = Field(
        default_factory=dict, description="by task: how often its examples occur in one epoch (default 1)"
    )
    too_long: Literal["drop", "cut_turns"] = Field(
        "drop",
        description="an example that is longer than the context; drop: it is dropped and counted; cut_turns: its last "
        "turns are left out, and it is dropped if no answer is left",
    )
    max_rejected: Fraction = Field(
        0.5, description="largest share of records that may be dropped or quarantined before the stage fails"
    )


class Lora(Section):
    """Low-rank adapters of the seven matrices of each layer (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1, le=4096, description="rank of the update of a matrix")
    alpha: float = Field(32.0, gt=0, le=1e6, description="the update is multiplied by alpha / rank")
    markers: bool = Field(
        True,
        description="also train the embedding of the chat markers, which pre-training never sees: without it a model "
        "cannot learn to end its answers",
    )
    base_weights: Literal["float32", "int8"] = Field(
        "float32",
        description="number format of the frozen matrices; int8: a quarter of their memory, and the activations of a "
        "layer are computed twice. The adapter then belongs to the rounded matrices",
    )


Method = Annotated[
    Literal["full", "lora"], Field(description="full: train all weights; lora: only adapters and the chat markers")
]


class Sft(Recipe):
    """Supervised fine-tuning on the chat data."""

    method: Method = "full"
    rows_per_step: int = Field(
        8,
        ge=1,
        le=2**22,
        description="rows of the context's length in a global batch, over all ranks and micro-batches",
    )
    pretraining_share: float = Field(
        0.1, ge=0, lt=1, description="share of the rows of a step that are pre-training text, against forgetting"
    )
    steps: int = Field(300, ge=1, le=10**9, description="number of optimizer steps")
    lr: float = Field(1e-3, gt=0, le=100, description="peak learning rate of AdamW")
    matrix_lr: float = Field(0.006, gt=0, le=100, description="peak learning rate of Muon (matrices of the layers)")
    weight_decay: float = Field(0.0, ge=0, le=100, description="weight decay of matrices")
    warmup_steps: int = Field(10, ge=0, le=10**9, description="steps in which the learning rate rises to its peak")
    decay_fraction: float = Field(0.5, ge=0.0, le=1.0, description="wsd: share of the steps in which the rate decays")
    eval_examples: int = Field(
        512, ge=1, le=10**7, description="validation examples that are scored, evenly from all tasks"
    )
    eval_tokens: int = Field(
        32_768, ge=1, le=2**40, description="tokens of the pre-training validation text that show what is forgotten"
    )
    lora: Lora = Field(default_factory=Lora)
    lora_lr: float = Field(2e-3, gt=0, le=100, description="lora: peak learning rate of AdamW, in place of lr")


class ChatEvaluate(Section):
    """The evaluation of the chat model on the test prompts."""

    prompts_per_task: int = Field(150, ge=1, le=10**7, description="largest number of test prompts of a task")
    max_new_tokens: int = Field(160, ge=1, le=10**6, description="longest answer in tokens")
    forgetting_tokens: int = Field(
        100_000,
        ge=1,
        le=10**12,
        description="tokens of plain test text that are scored again to measure what was forgotten: whole documents, "
        "evenly from the split",
    )
    bootstrap: int = Field(2000, ge=100, le=10**6, description="bootstrap resamples per interval")
    sampled_prompts: int = Field(
        20,
        ge=0,
        le=10**6,
        description="prompts of each verifiable task to which trained models give several answers, for pass@k",
    )
    samples: int = Field(8, ge=1, le=1024, description="sampled answers of each of these prompts")
    temperature: float = Field(1.0, gt=0, le=2.0, description="temperature of the sampled answers")


class ChatExport(ExportFormats):
    """The exports of the chat model and of the aligned one, and the gate of their promotion."""

    model_name: Name = Field("foundry-chat", description="name of the registered model and of the exported files")
    gguf_types: list[GgufType] = Field(
        ["f32", "q8_0"], min_length=1, description="number formats of the matrices, one GGUF file per format"
    )
    aligned: Literal["dpo", "rl"] = Field("rl", description="which of the two aligned models align_export exports")
    max_forgetting: float = Field(
        0.03, ge=0, le=10, description="gate: largest rise of the bits per byte of plain test text over the base model"
    )
    min_ended: Fraction = Field(0.98, description="gate: smallest share of greedy answers that end by themselves")


class Alignment(Recipe):
    """What reward, dpo and rl have in common: a recipe that begins with a fine-tuned model."""

    method: Method = "full"
    lora: Lora = Field(default_factory=Lora)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices of the layers and fused AdamW for all other parameters"
    )
    weight_decay: float = Field(0.0, ge=0, le=100, description="weight decay of matrices")
    warmup_steps: int = Field(5, ge=0, le=10**9, description="steps in which the learning rate rises to its peak")
    decay_fraction: float = Field(0.5, ge=0.0, le=1.0, description="wsd: share of the steps in which the rate decays")
    eval_interval: int = Field(25, ge=1, le=10**9, description="steps between two validations")


class Reward(Alignment):
    """The reward model: the trunk of the fine-tuned model and one number at the end of an answer."""

    steps: int = Field(100, ge=1, le=10**9, description="number of optimizer steps")
    pairs_per_step: int = Field(32, ge=1, le=10**6, description="pairs of a global batch")
    lr: float = Field(1e-4, gt=0, le=100, description="peak learning rate of AdamW")
    centre: float = Field(
        0.01, ge=0, le=10, description="weight of (sum of the two rewards)^2, which keeps rewards near 0"
    )
    eval_pairs: int = Field(256, ge=1, le=10**7, description="validation pairs that are scored")


class Preferences(Section):
    """Pairs of a better and a worse answer: sampled and verified, from the server's feedback, or from files."""

    sampled: bool = Field(True, description="sample answers of the fine-tuned model and let the verifiers choose")
    tasks: list[str] = Field(
        default_factory=list, description="tasks whose prompts are answered; empty: all that a verifier checks"
    )
    prompts: int = Field(1000, ge=1, le=10**7, description="training prompts that are answered")
    samples: int = Field(8, ge=2, le=1024, description="answers sampled for a prompt, which give at most one pair")
    temperature: float = Field(1.0, gt=0, le=2.0, description="temperature of the samples")
    max_new_tokens: int = Field(160, ge=1, le=10**6, description="longest answer in tokens")
    length_tolerance: float = Field(
        0.1, ge=0, le=10, description="largest difference between the lengths of a pair, relative to the longer one"
    )
    sources: list[CorpusPath] = Field(
        default_factory=list, description="globs of your own pairs (prompt, chosen, rejected) below corpus/"
    )
    feedback: list[CorpusPath] = Field(
        default_factory=list, description="globs of recordings of `foundry serve` with feedback, below corpus/"
    )

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if not (self.sampled or self.sources or self.feedback):
            raise ValueError("preferences has no source: set sampled, or name sources or feedback")
        return self


class Dpo(Alignment):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    steps: int = Field(100, ge=1, le=10**9, description="number of optimizer steps")
    pairs_per_step: int = Field(32, ge=1, le=10**6, description="pairs of a global batch")
    lr: float = Field(1e-4, gt=0, le=100, description="peak learning rate of AdamW")
    beta: float = Field(0.1, gt=0, le=100, description="how strongly the model is held to the fine-tuned one")
    sft_weight: float = Field(
        0.0, ge=0, le=100, description="weight of the nats per token of the better answers in the loss"
    )
    eval_pairs: int = Field(256, ge=1, le=10**7, description="validation pairs that are scored")


class Rl(Alignment):
    """Group-relative policy gradient with rewards of verifiers (Shao et al. 2024, arXiv:2402.03300)."""

    steps: int = Field(60, ge=1, le=10**9, description="number of optimizer steps")
    tasks: list[str] = Field(
        default_factory=list, description="tasks whose prompts are used; empty: all that a verifier checks"
    )
    prompts: int = Field(8, ge=1, le=10**6, description="prompts of a step")
    samples: int = Field(
        8, ge=2, le=1024, description="answers to each prompt, sampled from the model's own distribution"
    )
    max_new_tokens: int = Field(96, ge=1, le=10**6, description="longest answer in tokens, its end symbol included")
    lr: float = Field(5e-5, gt=0, le=100, description="peak learning rate of AdamW")
    kl: float = Field(0.0, ge=0, le=100, description="weight of the divergence from the parent (k3 estimator); 0: none")
    probe_prompts: int = Field(
        16, ge=1, le=10**6, description="prompts of each task that are answered before the start, `samples` times each"
    )
    eval_prompts: int = Field(64, ge=1, le=10**7, description="validation prompts that are answered greedily")
    eval_tokens: int = Field(
        32_768, ge=1, le=2**40, description="tokens of the pre-training validation text that show what is forgotten"
    )

    @model_validator(mode="after")
    def _tasks_once(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"rl.tasks must contain each task once, got {', '.join(self.tasks)}")
        return self
