"""Supervised fine-tuning: the one trainer with conversations as data, on all weights or on an adapter.

The loss is that of pre-training, over the learnt tokens only. The optimizer is new: the moments of pre-training belong
to a learning rate that has decayed to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundry.chat.loader import ChatLoader
from foundry.chat.sft_report import SftReport
from foundry.chat.shards import ChatShards
from foundry.chat.validation import HeldOutAnswers
from foundry.config import ConfigError, DataError, Runtime
from foundry.config.chat import Sft
from foundry.data.tokens.shards import Shards
from foundry.models import MiniLLM, TrainingFacts, load_model, load_trained_model
from foundry.models.adapter import Adapter, adapt, merged, trained_parameters
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import BEGIN, END, TEMPLATE_SHA256
from foundry.training import Trainer
from foundry.training.numerics import numerics
from foundry.training.pretraining import HeldOutText
from foundry.utils.distributed import World
from foundry.utils.events import Callback
from foundry.utils.log import get_logger


@dataclass(frozen=True)
class Folders:
    """What a fine-tuning reads: the base, its tokenizer, the chat data, the shards of pre-training."""

    base: str | Path = "artifacts/model"
    tokenizer: str | Path = "artifacts/tokenizer"
    chat: str | Path = "data/chat"
    text: str | Path = "data/shards"


@dataclass(frozen=True)
class Tuned:
    """What a finished fine-tuning gives.

    Attributes:
        model: without an adapter, which is merged.
        adapted: the model with its adapter, or None.
        facts: for `config.json`.
        report: for `reports/chat_sft.json`.
        curve, validations: one row per point of the loss curve and per validation.
    """

    model: MiniLLM
    adapted: MiniLLM | None
    facts: TrainingFacts
    report: SftReport
    curve: list[dict[str, float]]
    validations: list[dict[str, float]]


class FineTuning:
    """One run of supervised fine-tuning, planned and ready to start.

    Args:
        state: folder of all runs' states; default `.foundry/train`.

    Attributes:
        trainer: of the run.

    Raises:
        DataError: if a folder is missing, damaged, or of another tokenizer.
        ConfigError: listing everything that cannot work.
    """

    def __init__(
        self, sft: Sft, folders: Folders, *, seed: int, runtime: Runtime, world: World, state: Path | None = None
    ) -> None:
        self.sft, self.folders, self.world = sft, folders, world
        model, self.base = load_trained_model(folders.base)
        tokenizer = Tokenizer(folders.tokenizer)
        context, lora = model.cfg.max_seq_len, sft.method == "lora"
        self.loader = ChatLoader(
            folders.chat,
            sft.rows_per_step,
            context,
            seed,
            rank=world.rank,
            world_size=world.size,
            pretraining=folders.text,
            pretraining_share=sft.pretraining_share,
        )
        made_with = {self.base.tokenizer_sha256, self.loader.identity["tokenizer_sha256"], tokenizer.sha256}
        if len(made_with) > 1:
            raise DataError(
                f"{folders.base}, {folders.chat} and {folders.tokenizer} belong to different tokenizers "
                f"({', '.join(sorted(x[:12] for x in made_with))}): run `dvc repro chat/dvc.yaml`"
            )
        if lora and not sft.lora.markers and self.base.template_sha256 is None:
            raise ConfigError(
                "sft.lora.markers is false, and the base never met the chat markers: their embedding is random, and "
                "without training it the model can never end an answer. Set sft.lora.markers: true"
            )
        text = HeldOutText(Shards(folders.text, "val"), sft.eval_tokens, context, runtime.loss_chunk)
        held_out = ChatShards(folders.chat, "val")
        self.validator = HeldOutAnswers(held_out, sft.eval_examples, context, text, runtime.loss_chunk)
        rows = (tokenizer.id_of(BEGIN), tokenizer.id_of(END))
        self.markers = _marker_norms(model, rows)
        if lora:
            kind = sft.lora.base_weights
            adapt(model, Adapter(sft.lora.rank, sft.lora.alpha, rows if sft.lora.markers else (), kind), seed)
            if kind == "int8":  # otherwise the backward pass would keep every dequantised matrix
                runtime = runtime.model_copy(update={"recompute": True})
        recipe = sft.train_config(document_mask=True, **({"lr": sft.lora_lr} if lora else {}))
        self.trainer = Trainer(
            model,
            recipe,
            self.loader,
            validator=self.validator,
            seed=seed,
            runtime=runtime,
            world=world,
            state=state,
        )

    @property
    def learnt_share(self) -> float:
        """Share of the chat rows' places whose token is learnt."""
        return self.loader.learnt_per_epoch / (self.loader.rows_per_epoch * self.loader.seq_len)

    def lines(self) -> list[str]:
        """What was derived of the data and the method, before anything runs (law 9)."""
        sft, loader = self.sft, self.loader
        begin, end, others = self.markers
        rates = f"full: sft.lr {sft.lr:g}" + (f", sft.matrix_lr {sft.matrix_lr:g}" * (sft.optimizer == "muon"))
        return [
            f"method {sft.method}; learning rates ({rates}; lora: sft.lora_lr {sft.lora_lr:g}), a new optimizer",
            f"chat data: {len(loader.shards):,} examples in {loader.rows_per_epoch:,} rows per epoch, "
            f"{self.learnt_share:.1%} of the places are learnt, {loader.padding:.1%} are padding; "
            f"{loader.too_long} examples are longer than a row and left out",
            f"pre-training text: {float(loader.share):.1%} of the rows",
            f"the embeddings of the chat markers have the norms {begin:.3f} and {end:.3f}, the others {others:.3f} on "
            "average",
            f"validation: {len(self.validator.examples)} examples",
        ]

    def run(self, callbacks: Iterable[Callback] = ()) -> Tuned | None:
        """Trains to the end, from the newest checkpoint; the result on the main process, None on the others.

        Raises:
            As `Trainer.fit`.
        """
        trainer, log = self.trainer, get_logger()
        before: dict[str, float] = {}
        if self.world.main:
            for line in self.lines():
                log.info("%s", line)
            before = self._measured(trainer.model)
            log.info("before: %s", _in_words(before))
        trainer.callbacks += callbacks
        result = trainer.fit()
        if not self.world.main:
            return None
        lora = result.model.adapter is not None
        model = merged(result.model) if lora else result.model
        known = self.base
        facts = result.facts.model_copy(
            update={
                "template_sha256": TEMPLATE_SHA256,
                "parent_sha256": known.weights_sha256,
                "base_sha256": known.base_sha256 or known.weights_sha256,
            }
        )
        plan, after = trainer.plan, _metrics(result.validations[-1])
        report = SftReport(
            method=self.sft.method,
            **{k: getattr(plan, k) for k in ("params", "trained_params", "tokens_per_step", "tokens_per_epoch")},
            epochs=plan.epochs,
            pretraining_share=float(self.loader.share),
            learnt_share=round(self.learnt_share, 6),
            too_long=self.loader.too_long,
            flops=plan.flops,
            **facts.to_json(),
            loss=result.curve[-1]["loss"],
            before=before,
            after=after,
            on_exact_base=self._on_exact_base(result.model) if lora else None,
        )
        log.info("after: %s", _in_words(after))
        return Tuned(model, result.model if lora else None, facts, report, result.curve, result.validations)

    def _measured(self, model: MiniLLM) -> dict[str, float]:
        """The metrics of a model that is not the one in training."""
        execution, runtime = self.trainer.execution, self.trainer.runtime

        def apply(function: Any, *batch: torch.Tensor) -> Any:
            return function(model, *batch)

        model.to(self.world.device)
        with numerics(runtime, World(0, 1, self.world.device)):
            found = self.validator(model, apply, execution.precision, execution.micro_rows)
        return {k: float(f"{v:.6g}") for k, v in found.items()}

    def _on_exact_base(self, adapted: MiniLLM) -> dict[str, float] | None:
        """The metrics of an adapter of int8 weights on the exact base; None for any other adapter."""
        if adapted.adapter.base_weights != "int8":
            return None
        exact = load_model(self.folders.base)
        shape = adapted.adapter
        adapt(exact, Adapter(shape.rank, shape.alpha, shape.rows), 0)
        mine = trained_parameters(adapted)
        with torch.no_grad():
            for name, p in trained_parameters(exact).items():
                p.copy_(mine[name])
        return self._measured(exact)


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith("val_")}


def _in_words(metrics: dict[str, float]) -> str:
    return (
        f"{metrics['val_loss']:.4f} nats per learnt token, {metrics['val_answer_bits_per_byte']:.4f} bits per byte of "
        f"answers, {metrics['val_bits_per_byte']:.4f} bits per byte of plain text"
    )


def _marker_norms(model: MiniLLM, rows: tuple[int, int]) -> tuple[float, float, float]:
    norms = model.tok_embeddings.weight.detach().norm(dim=1)
    return norms[rows[0]].item(), norms[rows[1]].item(), norms.mean().item()
