"""Models that answer, in the registry: what is kept with a version, and the gate of their promotion.

A version becomes champion if its answers to the same prompts are better by the paired interval of the primary metric.
Three guards stand before it, which hold for the first version, too, apart from the last one: it forgot little of its
pre-training, it ends its answers, and no task is worse than the champion's by more than its interval.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

import foundry
from foundry.chat.measures import Draws, paired
from foundry.chat.table import read_answers
from foundry.config import Config, DataError
from foundry.export.lineage import NAME as LINEAGE
from foundry.export.lineage import read_lineage
from foundry.export.manifest import read_record, verify_export
from foundry.export.proof import ChatRecord
from foundry.project.registration import (
    ANSWERS,
    EVALUATIONS,
    CannotCompareError,
    cannot_compare,
    dataset,
    part_of,
    proof_summary,
    version_tags,
)
from foundry.tracking.names import ENDED, EXACT, EXACT_INTERVAL, FORGETTING, PROOF, TEST
from foundry.tracking.promotion import Decide, Decision
from foundry.tracking.registry import Candidate, fetch
from foundry.utils.chat_report import Paired, read_chat_report

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ABOUT = (
    "A language model that answers in conversations, trained by Foundry. `champion` is the best by paired comparison "
    "of answers to the same prompts, `challenger` the newest."
)
PAGES = ("reports/chat.html", "reports/chat_report.html", "reports/align_report.html")


def is_chat(version: ModelVersion) -> bool:
    """Whether a version answers in conversations."""
    return ENDED in version.tags


def chat_candidate(root: Path, export: str) -> tuple[Candidate, ChatRecord]:
    """What is registered of an export of a chat model, and what the export says about its answers.

    Raises:
        ExportError: if the export was changed.
        DataError: if the evaluation is missing or is of another model.
    """
    folder, package = root / export, Path(foundry.__file__).parent
    record = verify_export(folder)
    chat = record.chat
    if chat is None:
        raise DataError(f"{folder} is the export of a model that was not trained to answer")
    name, tables = EVALUATIONS[chat.stage]
    report = read_chat_report(root / name, DataError)
    answers = report.models.get(chat.stage)
    if answers is None or answers.weights_sha256 != record.weights_sha256:
        raise DataError(f"{name} is of another model than {export}: run `make chat`, or `make align`")
    scores = root / tables / chat.stage / ANSWERS
    read_answers(scores)
    macro = chat.macro_exact
    tags = {
        **version_tags(root),
        TEST: report.prompts_sha256,
        ENDED: repr(chat.ended.value),
        FORGETTING: repr(chat.forgetting.value),
        PROOF: proof_summary(record.proof),
    }
    metrics = {"ended": chat.ended.value, "forgetting": chat.forgetting.value}
    if macro:
        tags |= {EXACT: repr(macro.value), EXACT_INTERVAL: f"{macro.low} to {macro.high}"}
        metrics |= {"exact_match": macro.value, "exact_match_low": macro.low, "exact_match_high": macro.high}
    metrics |= {f"task_{task}": found.exact.all.value for task, found in answers.tasks.items() if found.exact}
    score = (
        f"{macro.value:.1%} exact match ({macro.low:.1%} to {macro.high:.1%})" if macro else "no exact match measured"
    )
    locks = ("dvc.lock", "chat/dvc.lock", "chat/align/dvc.lock")
    artifacts = [folder / LINEAGE, *(root / n for n in ("params.yaml", *locks, name, *PAGES))]
    candidate = Candidate(
        record.model_name,
        record.fingerprint,
        folder,
        scores,
        package / "export/pyfunc_model.py",
        [package],
        description=f"{chat.stage}: {score}; {chat.ended.value:.1%} of the answers end; run {record.fingerprint}.",
        about=ABOUT,
        tags=tags,
        metrics=metrics,
        artifacts=[p for p in artifacts if p.exists()],
        datasets=[
            dataset("data/chat", chat.data_sha256, "data/chat", "train"),
            *(
                dataset(source.name, source.sha256, source.url, "source")
                for source in (read_lineage(folder).raw if (folder / LINEAGE).is_file() else [])
            ),
        ],
    )
    return candidate, chat


def chat_gate_of(cfg: Config, client: MlflowClient, version: ModelVersion, uri: str, into: Path) -> Decide:
    """The gate for a version that is registered already.

    Args:
        into: a folder for its answers and its proof.
    """
    mine = read_answers(fetch(client, version, uri, into, ANSWERS))
    record = read_record(fetch(client, version, uri, into, "export"))
    if record.chat is None:
        raise DataError(f"version {version.version} of {version.name} is no model that answers")
    return chat_gate(cfg, mine, uri, record.chat, _root_of(version))


def _root_of(version: ModelVersion) -> Path | None:
    """The current folder, if its evaluation is of the prompts that the version answered."""
    for name in dict.fromkeys(name for name, _ in EVALUATIONS.values()):
        if Path(name).exists() and read_chat_report(name).prompts_sha256 == version.tags.get(TEST):
            return Path.cwd()
    return None


def chat_gate(cfg: Config, mine: pa.Table, uri: str, chat: ChatRecord, root: Path | None = None) -> Decide:
    """Decides by the guards, then by the answers to the same prompts.

    Args:
        mine: the answers of the version.
        chat: of its export.
        root: the project with the prompts of `mine`: a champion that answered other prompts answers these.
    """

    def decide(champion: ModelVersion | None) -> Decision:
        if broken := guards(cfg, chat):
            figures = {"forgetting": chat.forgetting.value, "ended": chat.ended.value}
            return Decision(False, f"{broken}; `foundry promote … --force --why …` overrides", figures)
        if champion is None:
            return Decision(True, "there was no champion, and the guards hold")
        try:
            pair = _compared(champion, mine, cfg, uri, root)
        except CannotCompareError as e:
            return Decision(False, str(e))
        return verdict(pair, str(champion.version))

    return decide


def guards(cfg: Config, chat: ChatRecord) -> str:
    """Why a model must not be champion, whatever the champion is; empty if nothing speaks against it."""
    most, least = cfg.chat_export.max_forgetting, cfg.chat_export.min_ended
    broken = []
    if chat.forgetting.value > most:
        broken.append(
            f"it forgot {chat.forgetting.value:+.4f} bits per byte of its pre-training (at most {most:+g}: "
            "chat_export.max_forgetting)"
        )
    if chat.ended.value < least:
        broken.append(f"it ends {chat.ended.value:.1%} of its answers (at least {least:.1%}: chat_export.min_ended)")
    return "; ".join(broken)


def verdict(pair: Paired, champion: str) -> Decision:
    """The decision by a comparison with the champion."""
    if pair.macro is None:
        return Decision(False, f"no task has answers that are right or wrong; champion is version {champion}")
    m = pair.macro
    figures = {"difference": m.value, "low": m.low, "high": m.high}
    if pair.win_rate is not None and pair.p_value is not None:
        figures |= {"win_rate": pair.win_rate.value, "p_value": pair.p_value}
    reason = (
        f"{pair.verdict}: macro exact match {100 * m.value:+.1f} points (95 % {100 * m.low:+.1f} to "
        f"{100 * m.high:+.1f}) on {pair.prompts} prompts, against version {champion}"
    )
    worse = {task: i for task, i in pair.tasks.items() if i.high < 0}
    if worse:
        named = ", ".join(f"{task} {100 * i.value:+.1f} points (to {100 * i.high:+.1f})" for task, i in worse.items())
        return Decision(False, f"{reason}; but worse by more than its interval in {named}", figures)
    return Decision(pair.verdict == "better", reason, figures)


def _compared(champion: ModelVersion, mine: pa.Table, cfg: Config, uri: str, root: Path | None) -> Paired:
    """Compares a version with the champion.

    Raises:
        CannotCompareError: if the champion's answers are gone or damaged, or are to other prompts and it cannot be
            asked again.
        TrackingError: if the store does not answer now: that is no decision, and the gate is asked again later.
    """
    draws, names = Draws(cfg.chat_evaluate.bootstrap, cfg.seed), (f"version {champion.version}", "this version")
    with tempfile.TemporaryDirectory(prefix="foundry-") as tmp:
        path = part_of(champion, uri, Path(tmp), ANSWERS)
        try:
            theirs = read_answers(path)
        except DataError as e:
            raise cannot_compare(champion, f"has answers that cannot be read ({e})") from None
        try:
            return paired(theirs, mine, names, draws)
        except DataError as e:
            if root is None or not (root / "data/chat/test").is_dir():
                raise cannot_compare(champion, f"answered other prompts ({e})") from None
        from foundry.chat.assessment import answers_of_export
        from foundry.utils.device import get_device

        folder, device = part_of(champion, uri, Path(tmp), "export"), get_device(cfg.runtime.device)
        verify_export(folder)
        theirs = answers_of_export(folder, cfg.chat_evaluate, cfg.chat.verifiers, device, root)
        try:
            return paired(theirs, mine, names, draws)
        except DataError as e:  # its context has no room for some of them
            raise cannot_compare(champion, f"cannot answer the same prompts ({e})") from None
