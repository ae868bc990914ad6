"""Reinforcement learning as a run: the one trainer on rollouts of a fine-tuned model, after a probe of its rewards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.chat.examples import read_examples
from foundry.chat.probe import check_probe, probe, probe_lines
from foundry.chat.prompt_pool import evenly, prompt_pool
from foundry.chat.rl import Judge, PolicyGradient, RolloutLoader, rollouts_file, verified
from foundry.chat.rl_validation import HeldOutRewards
from foundry.chat.rollout_statistics import RolloutCurves, Statistics, statistics
from foundry.chat.rollouts import join_rollouts
from foundry.chat.verifiers import load_verifiers
from foundry.config import ConfigError, DataError, Runtime
from foundry.config.chat import Rl
from foundry.data.tokens.shards import Shards
from foundry.models import MiniLLM, TrainingFacts, load_trained_model
from foundry.models.adapter import Adapter, adapt, merged
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import BEGIN, END, TEMPLATE_SHA256
from foundry.training import Trainer
from foundry.training.numerics import numerics
from foundry.training.pretraining import HeldOutText
from foundry.utils.device import resolve_precision
from foundry.utils.distributed import World
from foundry.utils.events import MetricsCallback
from foundry.utils.files import sha256_file, sha256_json
from foundry.utils.log import get_logger
from foundry.utils.rl_report import ProbedTask, RlReport


@dataclass(frozen=True)
class RlFolders:
    """What a reinforcement learning reads: the fine-tuned model, its tokenizer, the chat data, plain text."""

    parent: str | Path = "artifacts/chat/sft"
    tokenizer: str | Path = "artifacts/tokenizer"
    chat: str | Path = "data/chat"
    text: str | Path = "data/shards"


@dataclass(frozen=True)
class Learnt:
    """What a finished run gives.

    Attributes:
        model: without an adapter, which is merged.
        adapted: the model with its adapter, or None.
        facts: for `config.json`.
        report: for `reports/chat_rl.json`.
        steps: the statistics of each step's rollouts, from the first one.
        curve, validations: one row per point of the loss curve and per validation.
    """

    model: MiniLLM
    adapted: MiniLLM | None
    facts: TrainingFacts
    report: RlReport
    steps: list[Statistics]
    curve: list[dict[str, float]]
    validations: list[dict[str, float]]


class RewardTraining:
    """One run of reinforcement learning, planned and ready to start.

    Args:
        state: folder of all runs' states; default `.foundry/train`.
        judge: rewards the answers; default: the verifiers of the examples.
        programs: files of the user's verifiers.

    Attributes:
        trainer: of the run; its folder has the rollouts of each step.

    Raises:
        DataError: if a folder is missing, damaged, or of another tokenizer or template.
        ConfigError: listing everything that cannot work.
    """

    def __init__(
        self,
        rl: Rl,
        folders: RlFolders,
        *,
        seed: int,
        runtime: Runtime,
        world: World,
        state: Path | None = None,
        judge: Judge = verified,
        programs: Sequence[Path] = (),
    ) -> None:
        if world.size > 1 and runtime.parallel == "fsdp":
            raise ConfigError("rl draws answers with all weights on every process: set runtime.parallel: ddp")
        self.rl, self.seed, self.runtime, self.world, self.judge = rl, seed, runtime, world, judge
        model, self.known = load_trained_model(folders.parent)
        self.tokenizer = tokenizer = Tokenizer(folders.tokenizer)
        if self.known.tokenizer_sha256 != tokenizer.sha256:
            raise DataError(f"{folders.parent} was trained with another tokenizer than {folders.tokenizer}")
        if self.known.template_sha256 != TEMPLATE_SHA256:
            raise DataError(
                f"{folders.parent} did not learn to answer in this chat template, so no reward can be earned: "
                "run `dvc repro chat/dvc.yaml`"
            )
        for path in programs:
            load_verifiers(path)
        limit, context = rl.max_new_tokens, model.cfg.max_seq_len
        self.pool = prompt_pool(tokenizer, read_examples(folders.chat, "train"), rl.tasks, limit, context)
        self.held_out = prompt_pool(tokenizer, read_examples(folders.chat, "val"), rl.tasks, limit, context)
        if rl.method == "lora":
            shape = rl.lora
            rows = (tokenizer.id_of(BEGIN), tokenizer.id_of(END)) if shape.markers else ()
            adapt(model, Adapter(shape.rank, shape.alpha, rows, shape.base_weights), seed)
        model.to(world.device)
        self.loader = RolloutLoader(
            model,
            tokenizer,
            self.pool.prompts,
            groups=rl.prompts,
            samples=rl.samples,
            limit=limit,
            kl=rl.kl,
            seed=seed,
            precision=resolve_precision(runtime.precision, world.device),
            world=world,
            judge=judge,
            programs=sha256_json([sha256_file(path) for path in programs]) if programs else "",
        )
        text = HeldOutText(Shards(folders.text, "val"), rl.eval_tokens, context, runtime.loss_chunk)
        self.validator = HeldOutRewards(tokenizer, evenly(self.held_out.prompts, rl.eval_prompts), limit, text, judge)
        self.trainer = Trainer(
            model,
            rl.train_config(),
            self.loader,
            loss=PolicyGradient(runtime.loss_chunk),
            validator=self.validator,
            seed=seed,
            runtime=runtime,
            world=world,
            state=state,
        )
        self.loader.folder = self.trainer.folder / "rollouts"

    def lines(self) -> list[str]:
        """What was derived of the data and the batches, before anything runs (law 9)."""
        rl, loader = self.rl, self.loader
        return [
            f"prompts to learn from: {self.pool.line()}",
            f"prompts of the validation: {self.held_out.line()}; {len(self.validator.prompts)} are asked",
            f"a step: {rl.prompts} prompts x {rl.samples} answers of at most {rl.max_new_tokens} tokens; all steps: "
            f"{rl.steps * loader.batch_size:,} answers, {rl.steps * rl.prompts / len(self.pool.prompts):.2f} epochs",
        ]

    def probed(self) -> list[ProbedTask]:
        """What answers of the parent earn, the same on every process."""
        found = None
        if self.world.main:
            with numerics(self.runtime, World(0, 1, self.world.device)):
                found = probe(
                    self.loader.parent,
                    self.tokenizer,
                    self.pool.prompts,
                    per_task=self.rl.probe_prompts,
                    samples=self.rl.samples,
                    limit=self.rl.max_new_tokens,
                    seed=self.seed,
                    judge=self.judge,
                )
        return self.world.share(found)

    def run(self, rollouts: Path, trackers: Iterable[MetricsCallback] = ()) -> Learnt | None:
        """Trains to the end, from the newest checkpoint; the result on the main process, None on the others.

        Args:
            rollouts: the file that the rollouts of all steps are written to.
            trackers: get the numbers of each step.

        Raises:
            ConfigError: if the probe shows that these rewards teach nothing.
            FoundryError: as `Trainer.fit`, and if sampler and trainer disagree.
        """
        log, trainer, trackers = get_logger(), self.trainer, list(trackers)
        found = self.probed()
        before: dict[str, float] = {}
        if self.world.main:
            before = self._measured(self.loader.parent)
            for line in (*self.lines(), *probe_lines(found), f"before: {_in_words(before)}"):
                log.info("%s", line)
        check_probe(found, self.rl.max_new_tokens)
        trainer.callbacks += [*trackers, RolloutCurves(lambda: self.loader.last, trackers)]
        result = trainer.fit()
        if not self.world.main:
            return None
        adapted = result.model if result.model.adapter is not None else None
        facts = result.facts.model_copy(
            update={
                "template_sha256": TEMPLATE_SHA256,
                "parent_sha256": self.known.weights_sha256,
                "base_sha256": self.known.base_sha256 or self.known.weights_sha256,
            }
        )
        after = {k: v for k, v in result.validations[-1].items() if k in before}
        log.info("after: %s", _in_words(after))
        report, steps = self._report(rollouts, found, before, after)
        model = merged(adapted) if adapted is not None else result.model
        return Learnt(model, adapted, facts, report, steps, result.curve, result.validations)

    def _report(
        self, path: Path, found: list[ProbedTask], before: dict[str, float], after: dict[str, float]
    ) -> tuple[RlReport, list[Statistics]]:
        trainer, steps = self.trainer, range(self.rl.steps)
        files = [rollouts_file(self.loader.folder, trainer.skipped.batch(step)) for step in steps]
        seen: list[Statistics] = []
        drawn = live = 0
        for rollouts in join_rollouts(files, path):
            seen.append(statistics(rollouts))
            drawn, live = drawn + len(rollouts), live + sum(r.counted for r in rollouts)
        tenth = max(1, len(seen) // 10)
        report = RlReport(
            fingerprint=trainer.fingerprint,
            parent_sha256=self.known.weights_sha256,
            steps=len(seen),
            probe=found,
            rollouts=drawn,
            rollouts_sha256=sha256_file(path),
            live=live,
            reward_first=_rounded(sum(s.reward for s in seen[:tenth]) / tenth),
            reward_last=_rounded(sum(s.reward for s in seen[-tenth:]) / tenth),
            kl=_rounded(seen[-1].kl),
            entropy=_rounded(seen[-1].entropy),
            parity_max=_rounded(max(s.parity_max for s in seen)),
            before=before,
            after=after,
        )
        return report, seen

    def _measured(self, model: MiniLLM) -> dict[str, float]:
        """The validation's metrics of a model that is not the one in training."""
        execution = self.trainer.execution

        def apply(function: Any, *batch: Any) -> Any:
            return function(model, *batch)

        with numerics(self.runtime, World(0, 1, self.world.device)):
            found = self.validator(model, apply, execution.precision, execution.micro_rows)
        return {k: _rounded(v) for k, v in found.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _in_words(metrics: dict[str, float]) -> str:
    return (
        f"{metrics['val_passed']:.1%} of the greedy answers are right, {metrics['val_ended']:.1%} end by themselves, "
        f"{metrics['val_bits_per_byte']:.4f} bits per byte of plain text"
    )
