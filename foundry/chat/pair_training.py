"""A training on pairs as a run: the one trainer with the loss of DPO or of a reward model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foundry.chat.dpo import DpoLoss, HeldOutPairs, reference_of
from foundry.chat.measures import Draws, mean
from foundry.chat.pair_report import RESAMPLES, PairTrainingReport
from foundry.chat.pairs import EncodedPair, PairLoader, encode_pairs, read_pairs
from foundry.chat.reward import BradleyTerry, RewardedPairs, begin_rewards, right
from foundry.config import ConfigError, DataError, Runtime
from foundry.config.chat import Dpo, Reward
from foundry.models import MiniLLM, TrainingFacts, load_trained_model
from foundry.models.adapter import Adapter, adapt, merged
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import BEGIN, END, TEMPLATE_SHA256
from foundry.training import Trainer
from foundry.training.numerics import numerics
from foundry.utils.bootstrap import Interval
from foundry.utils.device import resolve_precision
from foundry.utils.distributed import World
from foundry.utils.events import Callback
from foundry.utils.files import state_dir
from foundry.utils.log import get_logger

DIGITS = 6  # significant ones of a metric in the report


@dataclass(frozen=True)
class PairFolders:
    """What a training on pairs reads: the fine-tuned model, its tokenizer, the pairs."""

    parent: str | Path = "artifacts/chat/sft"
    tokenizer: str | Path = "artifacts/tokenizer"
    pairs: str | Path = "data/preferences"


@dataclass(frozen=True)
class Trained:
    """What a finished run gives.

    Attributes:
        model: without an adapter, which is merged; a reward model is a model whose reward is read at `reward.SYMBOL`.
        adapted: the model with its adapter, or None.
        curve, validations: one row per point of the loss curve and per validation.
    """

    model: MiniLLM
    adapted: MiniLLM | None
    facts: TrainingFacts
    report: PairTrainingReport
    curve: list[dict[str, float]]
    validations: list[dict[str, float]]


class PairTraining:
    """One run of DPO or of a reward model, planned and ready to start.

    Args:
        section: which of the two, and its recipe.
        state: folder of all runs' states; default `.foundry/train`.
        references: folder of the log-probabilities under the parent; default `.foundry/references`.

    Attributes:
        trainer: of the run.

    Raises:
        DataError: if a folder is missing, damaged, or of another tokenizer or template, or there is no pair.
        ConfigError: listing everything that cannot work.
    """

    def __init__(
        self,
        section: Dpo | Reward,
        folders: PairFolders,
        *,
        seed: int,
        runtime: Runtime,
        world: World,
        state: Path | None = None,
        references: Path | None = None,
    ) -> None:
        self.section, self.runtime, self.world, self.seed = section, runtime, world, seed
        self.kind = "reward" if isinstance(section, Reward) else "dpo"
        model, self.known = load_trained_model(folders.parent)
        tokenizer = Tokenizer(folders.tokenizer)
        if self.known.tokenizer_sha256 != tokenizer.sha256:
            raise DataError(f"{folders.parent} was trained with another tokenizer than {folders.tokenizer}")
        if self.known.template_sha256 != TEMPLATE_SHA256:
            raise DataError(
                f"{folders.parent} did not learn to answer in this chat template: run `dvc repro chat/dvc.yaml`"
            )
        if model.cfg.dropout:
            raise ConfigError(
                f"model.dropout is {model.cfg.dropout}: pairs are compared without, and {self.kind} needs 0"
            )
        context = model.cfg.max_seq_len
        self.pairs, self.too_long = encode_pairs(tokenizer, read_pairs(folders.pairs, "train"), context)
        found, _ = encode_pairs(tokenizer, read_pairs(folders.pairs, "val"), context)
        most = min(section.eval_pairs, len(found))
        self.held_out = [found[i * len(found) // most] for i in range(most)]
        if not self.pairs or not self.held_out:
            raise DataError(
                f"{len(self.pairs)} training pairs and {len(self.held_out)} held-out pairs fit the context of "
                f"{context} tokens, and both are needed: see reports/preferences.json"
            )
        model.to(world.device)
        reference = None
        rows: tuple[int, ...] = (tokenizer.id_of(BEGIN), tokenizer.id_of(END)) if section.lora.markers else ()
        if isinstance(section, Dpo):
            reference, name = self._reference(model, references or state_dir() / "references")
            self.loss: DpoLoss | BradleyTerry = DpoLoss(section.beta, section.sft_weight, runtime.loss_chunk, name)
            self.validator: HeldOutPairs | RewardedPairs = HeldOutPairs(
                self.held_out, reference[len(self.pairs) :], model, self.loss
            )
            reference = reference[: len(self.pairs)]
        else:
            row = begin_rewards(model, tokenizer)
            rows += (row,)
            self.loss, self.validator = BradleyTerry(row, section.centre), RewardedPairs(self.held_out, row)
        if section.method == "lora":
            adapt(model, Adapter(section.lora.rank, section.lora.alpha, rows, section.lora.base_weights), seed)
            if section.lora.base_weights == "int8":  # otherwise every dequantised matrix would be kept
                runtime = runtime.model_copy(update={"recompute": True})
        self.loader = PairLoader(
            tokenizer,
            self.pairs,
            reference,
            section.pairs_per_step,
            seed,
            rank=world.rank,
            world_size=world.size,
        )
        self.trainer = Trainer(
            model,
            section.train_config(),
            self.loader,
            loss=self.loss,
            validator=self.validator,
            seed=seed,
            runtime=runtime,
            world=world,
            state=state,
        )

    def _reference(self, model: MiniLLM, folder: Path) -> tuple[np.ndarray, str]:
        """Of training and held-out pairs, the same on every process."""
        found = None
        if self.world.main:
            precision = resolve_precision(self.runtime.precision, self.world.device)
            with numerics(self.runtime, World(0, 1, self.world.device)):
                every = [*self.pairs, *self.held_out]
                found = reference_of(model, every, self.runtime.loss_chunk, precision, folder)
        return self.world.share(found)

    def lines(self) -> list[str]:
        """What was derived of the data, before anything runs (law 9)."""
        section, lengths = self.section, [(p.chosen.length, p.rejected.length) for p in self.pairs]
        chosen, rejected = np.mean(lengths, 0)
        longer = np.mean([p.longer_wins for p in self.pairs])
        return [
            f"{len(self.pairs):,} training pairs, {len(self.held_out):,} held out, {self.too_long} longer than the "
            f"context; {section.steps * section.pairs_per_step / len(self.pairs):.2f} epochs",
            f"answers have {chosen:.1f} tokens on the chosen side and {rejected:.1f} on the rejected one; the longer "
            f"one is the chosen one in {longer:.1%} of the pairs",
        ]

    def run(self, callbacks: Iterable[Callback] = ()) -> Trained | None:
        """Trains to the end, from the newest checkpoint; the result on the main process, None on the others.

        Raises:
            As `Trainer.fit`.
        """
        trainer, log = self.trainer, get_logger()
        before: dict[str, float] = {}
        if self.world.main:
            for line in self.lines():
                log.info("%s", line)
            before, _ = self._measured(trainer.model)
            log.info("before: %s", in_words(before))
        trainer.callbacks += callbacks
        result = trainer.fit()
        if not self.world.main:
            return None
        lora = result.model.adapter is not None
        model = merged(result.model) if lora else result.model
        facts = result.facts.model_copy(
            update={
                "template_sha256": TEMPLATE_SHA256,
                "parent_sha256": self.known.weights_sha256,
                "base_sha256": self.known.base_sha256 or self.known.weights_sha256,
            }
        )
        after, margins = self._measured(result.model)
        accuracy, longer, beats = against_length(self.held_out, margins, self.seed)
        plan = trainer.plan
        report = PairTrainingReport(
            kind=self.kind,
            method=self.section.method,
            params=plan.params,
            trained_params=plan.trained_params,
            pairs=len(self.pairs),
            held_out=len(self.held_out),
            too_long=self.too_long,
            epochs=round(self.section.steps * self.section.pairs_per_step / len(self.pairs), 4),
            **facts.to_json(),
            before=before,
            after=after,
            accuracy=accuracy,
            longer_wins=longer,
            beats_length=beats,
        )
        log.info("after: %s", in_words(after))
        if not beats:
            log.warning(
                "the accuracy on held-out pairs, %.3f [%.3f, %.3f], is not distinguishable from that of chance or of "
                "'the longer one is better' (%.3f): do not take it for a gain",
                *accuracy.model_dump().values(),
                longer.value,
            )
        return Trained(model, result.model if lora else None, facts, report, result.curve, result.validations)

    def _measured(self, model: MiniLLM) -> tuple[dict[str, float], np.ndarray]:
        """(metrics, the margin of each held-out pair) of a complete model."""
        execution = self.trainer.execution

        def apply(function: Any, *batch: torch.Tensor) -> Any:
            return function(model, *batch)

        model.to(self.world.device)
        arguments = model, apply, execution.precision, execution.micro_rows
        with numerics(self.runtime, World(0, 1, self.world.device)):
            metrics = self.validator(*arguments)
            if isinstance(self.validator, HeldOutPairs):
                values = self.validator.scores(*arguments)[0] - self.validator.reference
            else:
                values = self.validator.scores(*arguments)
        return {k: float(f"{v:.{DIGITS}g}") for k, v in metrics.items()}, values[:, 0] - values[:, 1]


def against_length(pairs: Sequence[EncodedPair], margins: np.ndarray, seed: int) -> tuple[Interval, Interval, bool]:
    """(accuracy, that of "the longer one is better", whether the first is above the second and above chance).

    Intervals are over prompts: pairs of one prompt depend on each other.
    """
    units, draws = [p.prompt for p in pairs], Draws(RESAMPLES, seed)
    hits, longer = right(margins), np.array([p.longer_wins for p in pairs])
    accuracy = mean(hits, units, draws)
    beats = accuracy.low > 0.5 and mean(hits - longer, units, draws).low > 0
    return accuracy, mean(longer, units, draws), beats


def in_words(metrics: dict[str, float]) -> str:
    names = {"val_loss": "loss", "val_accuracy": "accuracy", "val_longer_wins": "'the longer wins'"}
    known = [f"{text} {metrics[k]:.4f}" for k, text in names.items()]
    rest = [f"{k.removeprefix('val_')} {v:.4f}" for k, v in metrics.items() if k not in names]
    return ", ".join(known + rest)
