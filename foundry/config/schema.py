"""Typed parameters: one model for each section of `params.yaml`.

Two kinds of keys (law 1). Identity keys change results: they are part of the fingerprint or of a stage's DVC parameters.
Execution keys stand in `Runtime` alone: they say where and how the work is done and rerun nothing. A field's description is its
documentation: `foundry check --describe` prints it. Checks are exceptions that name the rule; unknown keys are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from foundry.config.corpus import Clean, Download, Shard, TokenizerParams
from foundry.config.section import Name, Section, TaskPath, shown

# YAML has no tuples and no sets: a list is what a user writes.
Pair = Annotated[tuple[float, float], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]


class ModelConfig(Section):
    """The architecture of a `MiniLLM` (Llama-style decoder).

    Raises:
        pydantic.ValidationError: (a `ValueError`) with the rule, for a shape that cannot work.
    """

    vocab_size: int = Field(4096, ge=1, le=2**20)
    dim: int = Field(256, ge=1, le=2**20, description="width of the residual stream")
    n_layers: int = Field(6, ge=1, le=10_000)
    n_heads: int = Field(4, ge=1, le=2**20, description="query heads")
    n_kv_heads: int = Field(2, ge=1, le=2**20, description="key and value heads (grouped-query attention)")
    ffn_dim: int = Field(768, ge=1, le=2**22, description="inner width of the SwiGLU feed-forward layer")
    max_seq_len: int = Field(256, ge=2, le=2**24, description="context length in tokens")
    rope_theta: float = Field(10_000.0, gt=0, le=1e12)
    norm_eps: float = Field(1e-5, gt=0, le=1)
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on the residual branches, in training only")
    tie_embeddings: bool = Field(True, description="one matrix for the input embedding and the output head")
    qk_norm: bool = Field(False, description="normalise queries and keys of each head (Qwen3)")
    zero_init: bool = Field(True, description="every block begins as the identity; false: small random outputs (GPT-2)")
    logit_softcap: float = Field(0.0, ge=0, le=1e6, description="logits stay within it by a tanh (Gemma 2); 0 = off")
    sliding_window: int = Field(
        0, ge=0, le=2**24, description="a token sees so many tokens, itself included; 0 = all before it"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.dim % self.n_heads:
            raise ValueError(
                f"dim must be divisible by n_heads: {self.dim} % {self.n_heads} = {self.dim % self.n_heads}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be divisible by n_kv_heads: {self.n_heads} % {self.n_kv_heads} = {self.n_heads % self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim (dim / n_heads = {self.head_dim}) must be even: rotary embedding turns pairs")
        return self

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class TrainConfig(Section):
    """The recipe of a training run. Every key is part of the run's identity."""

    steps: int = Field(1000, ge=1, le=10**9, description="optimizer steps")
    tokens_per_step: int = Field(
        2048, ge=2, le=2**32, description="global batch in tokens, over all ranks and micro-batches"
    )
    optimizer: Literal["adamw", "muon"] = Field("muon", description="muon: Muon on matrices, fused AdamW on the rest")
    lr: float = Field(3e-3, gt=0, le=100, description="peak learning rate of AdamW")
    matrix_lr: float = Field(0.02, gt=0, le=100, description="peak learning rate of Muon (matrices of the layers)")
    betas: Pair = Field((0.9, 0.95), description="AdamW")
    eps: float = Field(1e-8, gt=0, le=1, description="AdamW")
    weight_decay: float = Field(0.1, ge=0, le=100, description="on matrices; norms and embeddings are not decayed")
    grad_clip: float = Field(1.0, ge=0, le=1e9, description="largest global norm of the gradient; 0 = off")
    schedule: Literal["wsd", "cosine", "linear", "constant"] = Field(
        "wsd", description="after the warm-up; wsd: stable, then linear decay to min_lr_ratio"
    )
    warmup_steps: int = Field(40, ge=0, le=10**9)
    decay_fraction: float = Field(0.6, ge=0.0, le=1.0, description="wsd: share of the steps that decays")
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0, description="learning rate at the end, relative to the peak")
    packing: Literal["cut", "best_fit", "document"] = Field(
        "cut",
        description="cut: documents joined and cut, each token once; best_fit: whole documents with padding; document: one a row",
    )
    document_mask: bool = Field(False, description="attention ends where a document does")
    z_loss: float = Field(
        0.0, ge=0, le=1e3, description="weight of (log sum exp of the logits)^2 in what is minimised; 0 = off"
    )
    on_nonfinite: Literal["halt", "skip", "rollback"] = Field(
        "halt",
        description="when a loss or gradient is not finite; skip: that step changes nothing; rollback: the batches before it are skipped",
    )
    rollback_steps: int = Field(
        5, ge=1, le=10**9, description="batches that a rollback passes over, the offending one included"
    )
    log_interval: int = Field(10, ge=1, le=10**9, description="steps between two points of the loss curve")
    eval_interval: int = Field(100, ge=1, le=10**9, description="steps between two validations")
    eval_tokens: int = Field(32_768, ge=1, le=2**40, description="validation tokens, always the same ones")

    _batch_size: int | None = PrivateAttr(None)

    @property
    def batch_size(self) -> int | None:
        """Sequences of a step, if that is how the recipe was given; the loader must have as many."""
        return self._batch_size

    @property
    def learning_rate(self) -> float:
        """Another name of `lr`."""
        return self.lr

    @property
    def max_iters(self) -> int:
        """Another name of `steps`."""
        return self.steps

    @property
    def decay_steps(self) -> int:
        """Steps at the end in which the rate of `wsd` decays."""
        return max(1, round(self.decay_fraction * self.steps))

    @model_validator(mode="wrap")
    @classmethod
    def _other_names(cls, data: Any, handler: ModelWrapValidatorHandler, info: ValidationInfo) -> Any:
        """`TrainConfig(batch_size=, learning_rate=, max_iters=)`: names that `params.yaml` does not have."""
        if not isinstance(data, dict) or (info.context or {}).get("pipeline"):
            return handler(data)
        rows = data.get("batch_size")
        names = {"learning_rate": "lr", "max_iters": "steps"}
        if twice := [f"{k} and {v}" for k, v in names.items() if k in data and v in data]:
            raise ValueError(f"{twice[0]} are two names of one key: give one of them")
        values = {names.get(k, k): v for k, v in data.items() if k != "batch_size"}
        if "steps" in values and "warmup_steps" not in values and isinstance(values["steps"], int):
            values["warmup_steps"] = min(cls.model_fields["warmup_steps"].default, values["steps"] // 10)
        made = handler(values)
        if rows is not None:
            if type(rows) is not int or rows < 1:
                raise ValueError(f"batch_size must be a positive number of sequences, got {rows!r}")
            made._batch_size = rows
        return made

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        if self.schedule == "wsd" and self.warmup_steps > self.steps - self.decay_steps:
            raise ValueError(
                f"the warm-up ({self.warmup_steps} steps) does not fit before the decay of wsd, which begins after step "
                f"{self.steps - self.decay_steps} of {self.steps}: lower warmup_steps or decay_fraction ({self.decay_fraction})"
            )
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        return self


class Evaluate(Section):
    test_bytes: int = Field(
        16_000_000,
        ge=0,
        le=10**15,
        description="test documents are taken evenly from the whole split until about so many bytes are reached; 0: all",
    )
    bootstrap: int = Field(2000, ge=100, le=10**6, description="resamples of the documents for each interval")
    baselines: bool = Field(True, description="compress the same bytes with xz, zstd and PPMd")
    contamination_ngram: int = Field(
        13,
        ge=0,
        le=1000,
        description="words of a run that counts as seen when the training text has it too; 0: not looked for",
    )
    tasks: list[Literal["cloze", "minimal_pairs"]] = Field(
        default_factory=lambda: ["cloze", "minimal_pairs"], description="multiple choice made from the test text"
    )
    task_items: int = Field(200, ge=1, le=10**6, description="questions of each of them, at most one a document")
    task_files: list[TaskPath] = Field(
        default_factory=list, description="globs of your own multiple-choice questions (JSON lines) below tasks/"
    )
    harness: list[str] = Field(
        default_factory=list,
        description="tasks of lm-evaluation-harness by name; they may need the internet and pip install 'foundry-lm[eval]'",
    )
    harness_limit: int = Field(0, ge=0, le=10**9, description="examples of each of those; 0: all")
    prompts: list[str] = Field(
        default_factory=lambda: ["The ", "Chocolate Cake\n\nIngredients:\n"], description="fixed prompts of the samples"
    )
    max_new_tokens: int = Field(120, ge=1, le=10**6)
    temperature: float = Field(
        0.8, ge=0.0, le=2.0, description="of the sampled continuations; a greedy one stands beside each"
    )


class Export(Section):
    model_name: Name = Field("foundry-lm", description="name of the registered model and of the exported files")
    gguf_types: list[Literal["f32", "f16", "bf16", "q8_0", "q4_0"]] = Field(
        ["f32", "bf16", "q8_0", "q4_0"],
        min_length=1,
        description="number formats of the matrices, one GGUF file each; q8_0 and q4_0 need widths in multiples of 32",
    )
    parity_tolerance: float = Field(1e-4, gt=0, le=1, description="largest difference of logits that is accepted")

    @field_validator("gguf_types")
    @classmethod
    def _once_each(cls, kinds: list[str]) -> list[str]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"each format once, got {', '.join(kinds)}")
        return kinds


class Runtime(Section):
    """Execution keys: no stage depends on them, changing one reruns nothing."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: CUDA, else MPS, else CPU")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of autocast; auto: bfloat16 where the hardware has it, float16 on older GPUs, else float32"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile; auto: where it works and the run is long enough to pay for it"
    )
    nproc: int = Field(
        0, ge=0, le=1024, description="training processes of this machine; 0: one for each GPU, else one"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="several processes; ddp: each holds the model; fsdp: they share it, for models that do not fit",
    )
    recompute: bool = Field(
        False, description="recompute activations in the backward pass: less memory, a third more work"
    )
    loss_chunk: int = Field(1024, ge=16, le=2**32, description="tokens whose logits exist at a time in training")
    threads: int = Field(0, ge=0, le=4096, description="CPU threads of a process; 0: all cores")
    micro_batch_tokens: int = Field(
        0, ge=0, le=2**32, description="tokens of one forward pass on one process; 0: as many as is fast"
    )
    checkpoint_interval: int = Field(200, ge=1, le=10**9, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=10**6, description="newest checkpoints that are kept")
    downloads: int = Field(4, ge=1, le=256, description="parallel downloads")
    workers: int = Field(0, ge=0, le=4096, description="processes that clean and tokenize; 0: all cores")
    executor: Literal["local", "ray"] = Field(
        "local", description="where they run; ray: needs pip install foundry-lm[ray]"
    )
    ray_address: str | None = Field(None, description="an existing Ray cluster; null: one on this machine")
    unit_bytes: int = Field(
        8 << 20, ge=1024, le=1 << 40, description="bytes of a raw file that are one unit of cleaning work"
    )
    memory_bytes: int = Field(
        512 << 20,
        ge=1 << 20,
        le=1 << 50,
        description="memory of one process for sorting and counting; more goes through the disk",
    )
    tracking: bool = Field(True, description="send metrics and models to MLflow")
    tracking_uri: str | None = Field(
        None, description="MLflow address; null: the environment's MLFLOW_TRACKING_URI, else SQLite under .foundry/"
    )
    experiment: str = Field("foundry", min_length=1, description="MLflow experiment")
    tensorboard: str | None = Field(None, description="folder for TensorBoard's event files; null: none")
    profile: bool = Field(
        False, description="write a profiler trace and a memory summary of ten steps into the run's state folder"
    )


class Config(Section):
    """All of `params.yaml`."""

    seed: int = Field(1, ge=0, lt=2**63, description="of weights, order of the batches, dropout and samples")
    download: Download
    clean: Clean = Field(default_factory=Clean)
    tokenizer: TokenizerParams = Field(default_factory=TokenizerParams)
    shard: Shard = Field(default_factory=Shard)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: Export = Field(default_factory=Export)
    runtime: Runtime = Field(default_factory=Runtime)

    @model_validator(mode="before")
    @classmethod
    def _one_vocabulary(cls, data: Any) -> Any:
        """`model.vocab_size` is the tokenizer's; it need not, and may not otherwise, be given."""
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            tokenizer = data.get("tokenizer")
            vocab = tokenizer.get("vocab_size", 4096) if isinstance(tokenizer, dict) else 4096
            given = data["model"].get("vocab_size", vocab)
            if given != vocab:
                raise ValueError(
                    f"model.vocab_size ({shown(given)}) must equal tokenizer.vocab_size ({shown(vocab)}): leave it out"
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
                f"runtime.micro_batch_tokens ({micro}) must be a multiple of model.max_seq_len ({self.model.max_seq_len}) "
                f"and divide train.tokens_per_step ({self.train.tokens_per_step})"
            )
        rows, nproc = self.train.tokens_per_step // self.model.max_seq_len, self.runtime.nproc
        if nproc > 1 and rows % nproc:
            problems.append(
                f"runtime.nproc ({nproc}) must divide the {rows} sequences of a step (train.tokens_per_step / model.max_seq_len)"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
