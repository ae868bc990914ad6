"""Typed parameters: one class per section of `params.yaml`.

Those of the data stages are in `corpus.py`, those of post-training in `chat.py`, the recipe of a training in
`recipe.py`. There are two kinds of keys (law 1). Identity keys change results: they are part of the fingerprint or of a
stage's DVC parameters. Execution keys are in the sections of `EXECUTION`: they decide where and how the work is done,
and rerun nothing. The description of a field is its documentation: `foundry check --describe` prints it, and the forms
of the flows show it. A failed check is an exception that names the rule; an unknown key is an error.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from foundry.config.chat import (
    POST_TRAINING,
    Chat,
    ChatEvaluate,
    ChatExport,
    Dpo,
    Preferences,
    Reward,
    Rl,
    Sft,
)
from foundry.config.corpus import Clean, Download, Shard, TokenizerParams
from foundry.config.export import Export
from foundry.config.recipe import TrainConfig, TrainSection
from foundry.config.section import Section, TaskPath, short_repr
from foundry.config.serving import Serving

EXECUTION = frozenset({"runtime", "serving"})  # sections that no stage depends on


class ModelConfig(Section):
    """The architecture of a `MiniLLM` (Llama-style decoder).

    Raises:
        pydantic.ValidationError: (a `ValueError`) for a shape that cannot work; the message names the rule.
    """

    vocab_size: int = Field(4096, ge=1, le=2**20, description="number of tokens; in params.yaml the tokenizer's")
    dim: int = Field(256, ge=1, le=2**20, description="width of the residual stream")
    n_layers: int = Field(6, ge=1, le=10_000, description="number of transformer blocks")
    n_heads: int = Field(4, ge=1, le=2**20, description="number of query heads")
    n_kv_heads: int = Field(2, ge=1, le=2**20, description="number of key and value heads (grouped-query attention)")
    ffn_dim: int = Field(768, ge=1, le=2**22, description="inner width of the SwiGLU feed-forward layer")
    max_seq_len: int = Field(256, ge=2, le=2**24, description="context length in tokens")
    rope_theta: float = Field(10_000.0, gt=0, le=1e12, description="base of the rotary position embedding")
    norm_eps: float = Field(1e-5, gt=0, le=1, description="epsilon of RMSNorm")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout of the residual branches, in training only")
    tie_embeddings: bool = Field(True, description="use one matrix for the input embedding and the output head")
    qk_norm: bool = Field(False, description="normalise the queries and keys of each head (Qwen3)")
    zero_init: bool = Field(
        True, description="initialise every block as the identity; false: small random outputs (GPT-2)"
    )
    logit_softcap: float = Field(
        0.0, ge=0, le=1e6, description="bound of the logits, applied by a tanh (Gemma 2); 0: no bound"
    )
    sliding_window: int = Field(
        0, ge=0, le=2**24, description="number of tokens that a token attends to, itself included; 0: all before it"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.dim % self.n_heads:
            raise ValueError(
                f"dim must be divisible by n_heads: {self.dim} % {self.n_heads} = {self.dim % self.n_heads}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be divisible by n_kv_heads: {self.n_heads} % {self.n_kv_heads} = "
                f"{self.n_heads % self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim (dim / n_heads = {self.head_dim}) must be even: the rotary embedding rotates pairs"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class Evaluate(Section):
    """The evaluation of the trained model on the test split."""

    test_bytes: int = Field(
        16_000_000,
        ge=0,
        le=10**15,
        description="size of the test text in bytes: documents are taken evenly from the whole split; 0: all of it",
    )
    bootstrap: int = Field(2000, ge=100, le=10**6, description="bootstrap resamples of the documents per interval")
    baselines: bool = Field(True, description="also compress the same bytes with xz, zstd and PPMd")
    contamination_ngram: int = Field(
        13,
        ge=0,
        le=1000,
        description="length in words of an n-gram of the test text that counts as seen if the training text has it; "
        "0: not checked",
    )
    tasks: list[Literal["cloze", "minimal_pairs"]] = Field(
        default_factory=lambda: ["cloze", "minimal_pairs"],
        description="multiple-choice tasks that are made from the test text",
    )
    task_items: int = Field(
        200, ge=1, le=10**6, description="questions per task of evaluate.tasks, at most one per document"
    )
    task_files: list[TaskPath] = Field(
        default_factory=list, description="globs of your own multiple-choice questions (JSON lines) below tasks/"
    )
    harness: list[str] = Field(
        default_factory=list,
        description="names of tasks of lm-evaluation-harness; they may need the internet and `make setup extras=eval`",
    )
    harness_limit: int = Field(0, ge=0, le=10**9, description="examples per task of evaluate.harness; 0: all")
    prompts: list[str] = Field(
        default_factory=lambda: ["The ", "Chocolate Cake\n\nIngredients:\n"],
        description="fixed prompts of the text samples",
    )
    max_new_tokens: int = Field(120, ge=1, le=10**6, description="length of a text sample in tokens")
    temperature: float = Field(
        0.8, ge=0.0, le=2.0, description="temperature of the text samples; a greedy one is shown beside each"
    )


class Runtime(Section):
    """Execution keys: no stage depends on them, and changing one reruns nothing."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="device of the tensors; auto: CUDA, else MPS, else CPU"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="number format of autocast; auto: bfloat16 where the hardware has it, float16 on older GPUs, else "
        "float32",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="use torch.compile; auto: where it works and the run is long enough to profit"
    )
    nproc: int = Field(
        0, ge=0, le=1024, description="number of training processes on this machine; 0: one per GPU, or one without"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="how several processes train; ddp: each has the complete model; fsdp: each has a part of it, for "
        "models that do not fit one device",
    )
    recompute: bool = Field(
        False, description="recompute activations in the backward pass: less memory, a third more work"
    )
    loss_chunk: int = Field(
        1024, ge=16, le=2**32, description="number of tokens whose logits are in memory at the same time in training"
    )
    threads: int = Field(0, ge=0, le=4096, description="CPU threads per process; 0: all cores")
    micro_batch_tokens: int = Field(
        0, ge=0, le=2**32, description="tokens per forward pass and process; 0: chosen for speed"
    )
    checkpoint_interval: int = Field(200, ge=1, le=10**9, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=10**6, description="number of newest checkpoints to keep")
    downloads: int = Field(4, ge=1, le=256, description="number of parallel downloads")
    workers: int = Field(0, ge=0, le=4096, description="number of processes that clean and tokenize; 0: one per core")
    executor: Literal["local", "ray"] = Field(
        "local", description="where these processes run; ray needs `make setup extras=ray`"
    )
    ray_address: str | None = Field(
        None, description="HOST:PORT of an existing Ray cluster; null: start one on this machine"
    )
    unit_bytes: int = Field(
        8 << 20, ge=1024, le=1 << 40, description="bytes of a raw file that one task of cleaning works on"
    )
    memory_bytes: int = Field(
        512 << 20,
        ge=1 << 20,
        le=1 << 50,
        description="memory per process for sorting and counting; what needs more uses the disk",
    )
    tracking: bool = Field(True, description="send metrics and models to MLflow")
    tracking_uri: str | None = Field(
        None, description="address of MLflow; null: MLFLOW_TRACKING_URI of the environment, else SQLite in .foundry/"
    )
    experiment: str = Field("foundry", min_length=1, description="name of the MLflow experiment")
    tensorboard: str | None = Field(None, description="folder for TensorBoard's event files; null: none are written")
    profile: bool = Field(
        False, description="write a profiler trace and a memory summary of ten steps into the run's state folder"
    )


class Config(Section):
    """All of `params.yaml`."""

    seed: int = Field(
        1, ge=0, lt=2**63, description="seed of the weights, the order of the batches, dropout and text samples"
    )
    download: Download
    clean: Clean = Field(default_factory=Clean)
    tokenizer: TokenizerParams = Field(default_factory=TokenizerParams)
    shard: Shard = Field(default_factory=Shard)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: Export = Field(default_factory=Export)
    chat: Chat = Field(default_factory=Chat)
    sft: Sft = Field(default_factory=Sft)
    chat_evaluate: ChatEvaluate = Field(default_factory=ChatEvaluate)
    chat_export: ChatExport = Field(default_factory=ChatExport)
    reward: Reward = Field(default_factory=Reward)
    preferences: Preferences = Field(default_factory=Preferences)
    dpo: Dpo = Field(default_factory=Dpo)
    rl: Rl = Field(default_factory=Rl)
    runtime: Runtime = Field(default_factory=Runtime)
    serving: Serving = Field(default_factory=Serving)

    def identity(self) -> dict[str, Any]:
        """The identity parameters of pre-training, as JSON values: all sections but execution and post-training."""
        return self.model_dump(mode="json", exclude=set(EXECUTION | POST_TRAINING))

    def post_training(self) -> dict[str, Any]:
        """The identity parameters of post-training, as JSON values."""
        return self.model_dump(mode="json", include=set(POST_TRAINING))

    @field_validator("train", mode="before")
    @classmethod
    def _recipe(cls, value: Any) -> Any:
        """A `TrainConfig` of a Python program is taken as the section, by what was set in it."""
        plain = isinstance(value, TrainConfig) and not isinstance(value, TrainSection)
        return value.model_dump(exclude_unset=True) if plain else value

    @model_validator(mode="before")
    @classmethod
    def _one_vocabulary(cls, data: Any) -> Any:
        """Sets `model.vocab_size` to the tokenizer's; if it is given, it must be the same."""
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            tokenizer = data.get("tokenizer")
            vocab = tokenizer.get("vocab_size", 4096) if isinstance(tokenizer, dict) else 4096
            given = data["model"].get("vocab_size", vocab)
            if given != vocab:
                raise ValueError(
                    f"model.vocab_size ({short_repr(given)}) must equal tokenizer.vocab_size ({short_repr(vocab)}): "
                    "leave it out"
                )
            data = {**data, "model": {**data["model"], "vocab_size": vocab}}
        return data

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems = []
        names = {s.name for s in self.download.sources}
        if unknown := sorted(set(self.shard.weights) - names):
            problems.append(
                f"shard.weights names no source: {', '.join(unknown)}; sources are {', '.join(sorted(names))}"
            )
        if self.train.tokens_per_step % self.model.max_seq_len:
            n = max(1, round(self.train.tokens_per_step / self.model.max_seq_len))
            problems.append(
                f"train.tokens_per_step ({self.train.tokens_per_step}) must be a multiple of model.max_seq_len "
                f"({self.model.max_seq_len}); nearest: {n * self.model.max_seq_len}"
            )
        micro = self.runtime.micro_batch_tokens
        if micro and (micro % self.model.max_seq_len or self.train.tokens_per_step % micro):
            problems.append(
                f"runtime.micro_batch_tokens ({micro}) must be a multiple of model.max_seq_len "
                f"({self.model.max_seq_len}) and divide train.tokens_per_step ({self.train.tokens_per_step})"
            )
        rows, nproc = self.train.tokens_per_step // self.model.max_seq_len, self.runtime.nproc
        if nproc > 1 and rows % nproc:
            problems.append(
                f"runtime.nproc ({nproc}) must divide the {rows} sequences of a step "
                "(train.tokens_per_step / model.max_seq_len)"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
