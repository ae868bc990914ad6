"""Registers an export of the project, and decides which version is champion.

Used by the stages that export, `foundry register`, `foundry promote` and `foundry rollback`. What is particular to
models that answer is in `foundry.project.register_chat`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import foundry
from foundry.chat.table import read_answers
from foundry.config import Config, DataError, FoundryError, TrackingError, load_params
from foundry.config.pipelines import EXPORTS
from foundry.evaluation.compare import Comparison, compare_documents
from foundry.evaluation.losses import read_losses
from foundry.export.lineage import NAME as LINEAGE
from foundry.export.lineage import read_lineage
from foundry.export.manifest import verify_export
from foundry.export.proof import ExportRecord
from foundry.project.register_chat import chat_candidate, chat_gate, chat_gate_of, is_chat
from foundry.project.registration import (
    WAITING,
    CannotCompareError,
    Waiting,
    cannot_compare,
    dataset,
    part_of,
    proof_summary,
    version_tags,
)
from foundry.project.trace import EXPORT
from foundry.tracking import DatasetRef, Registration, register, tracking_uri
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.names import INTERVAL, PROOF, SCORE, TEST, TEST_SCORE
from foundry.tracking.promotion import Decide, Decision, Promotion, Rollback, force, settle, whoami
from foundry.tracking.promotion import rollback as roll_back
from foundry.tracking.registry import SCORES, Candidate, fetch, find, model_address, reached
from foundry.utils.evaluation_report import EvaluationReport, read_evaluation
from foundry.utils.files import (
    atomic_dir,
    make_folder,
    open_to_write,
    remove_dir,
    sha256_tree,
    state_dir,
    write_json,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow.entities.model_registry import ModelVersion

REPORTS = ("evaluate.json", "report.html", "samples.md", "loss.png", "data_card.md")


def register_export(cfg: Config, root: str | Path = ".", export: str = EXPORT) -> Registration:
    """Registers an export of the project, with the numbers and reports of its evaluation, and asks the gate.

    If MLflow is away, a copy of everything that is needed waits under `.foundry/register/` for `foundry sync`.

    Args:
        export: its folder in the project.

    Raises:
        ExportError: if the export is missing or was changed.
        DataError: if the evaluation is missing or is of another model.
        TrackingError: if MLflow is away.
    """
    root = Path(root).resolve()
    uri = tracking_uri(cfg.runtime)
    if export == EXPORT:
        candidate = _candidate(cfg, root)
        decide = _gate(cfg, read_losses(candidate.scores), uri, root)
    else:
        candidate, chat = chat_candidate(root, export)
        decide = chat_gate(cfg, read_answers(candidate.scores), uri, chat, root)
    waiting = _waiting(sha256_tree(candidate.export_dir))
    try:
        done = register(candidate, uri=uri, experiment=cfg.runtime.experiment, decide=decide)
    except TrackingError:
        _keep(root, waiting, candidate)
        raise
    if waiting.exists():
        remove_dir(waiting)
    return done


def deliver_registrations(cfg: Config) -> list[Registration]:
    """Registers what could not be registered before, at the present address of MLflow.

    Raises:
        TrackingError: if MLflow is still away, or a waiting export cannot be registered; all others are registered.
    """
    done, problems = [], []
    for folder in sorted(p.parent for p in (state_dir() / "register").glob(f"[!.]*/{WAITING}")):
        try:
            waiting = load_params(folder / "params.yaml").model_copy(update={"runtime": cfg.runtime})
            export = next((e for e in EXPORTS if (folder / e).is_dir()), EXPORT)
            done.append(register_export(waiting, folder, export))
        except FoundryError as e:
            problems.append(f"{folder.name[:12]}: {e}")
    if problems:
        lines = [
            *map(described, done),
            "not every waiting model could be registered; run `foundry sync` again later:",
            *problems,
        ]
        raise TrackingError("\n  - ".join(lines))
    return done


def described(done: Registration) -> str:
    """A registration in one line."""
    return f"version {done.version} of {done.name}: {done.reason}"


def _keep(root: Path, waiting: Path, candidate: Candidate) -> None:
    """Copies what a registration reads, because a worktree and the outs of a stage do not stay.

    The copy is complete, or it does not exist.
    """
    if root == waiting or waiting.exists():
        return
    with atomic_dir(waiting) as tmp:
        for path in (candidate.export_dir, candidate.scores, *candidate.artifacts):
            for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                target = tmp / file.relative_to(root)
                make_folder(target.parent)
                with open(file, "rb") as source, open_to_write(target) as f:
                    shutil.copyfileobj(source, f, 1 << 20)
        tags = {k: v for k, v in candidate.tags.items() if k in lineage_tags(root)}
        write_json(tmp / WAITING, Waiting(tags=tags).model_dump())


def promote(cfg: Config, which: str, why: str | None = None, model: str | None = None) -> Promotion:
    """Lets the gate decide about a version, or makes it champion against the gate.

    Args:
        model: name of the registered model; None: that of `export.model_name`.
        which: a version or an alias.
        why: the reason of a forced promotion; None asks the gate.

    Raises:
        ConfigError: if there is no such version.
        TrackingError: if MLflow is away.
    """
    uri, name = tracking_uri(cfg.runtime), model or cfg.export.model_name
    with reached(uri, f"promote {which} of {name}") as client:
        version = find(client, model_address(name, which))
        if why is not None:
            before = force(client, name, str(version.version), why)
            return Promotion(True, f"forced by {whoami()}: {why} (champion before: {before or 'none'})")
        with tempfile.TemporaryDirectory(prefix="foundry-") as tmp:
            if is_chat(version):
                return settle(client, name, version, chat_gate_of(cfg, client, version, uri, Path(tmp)))
            mine = read_losses(fetch(client, version, uri, Path(tmp), SCORES))
        return settle(client, name, version, _gate(cfg, mine, uri, _root_of(version)))


def rollback(cfg: Config, why: str, model: str | None = None) -> Rollback:
    """Returns `champion` to the version before.

    Args:
        model: name of the registered model; None: that of `export.model_name`.

    Raises:
        ConfigError: if there was no champion before.
        TrackingError: if MLflow is away.
    """
    name = model or cfg.export.model_name
    with reached(tracking_uri(cfg.runtime), f"roll {name} back") as client:
        return roll_back(client, name, why)


def _gate(cfg: Config, mine: pa.Table, uri: str, root: Path | None = None) -> Decide:
    """Promotes a version that is better than the champion on the same test bytes, by the paired interval.

    The proof of its export was checked before.

    Args:
        mine: the losses of the version by document.
        root: the project with the test text of `mine`: a champion that was tested on other text is scored on it.
    """

    def decide(champion: ModelVersion | None) -> Decision:
        if champion is None:
            return Decision(True, "there was no champion")
        try:
            done, again = _compared_with(champion, mine, cfg, uri, root)
        except CannotCompareError as e:
            return Decision(False, str(e))
        d = done.overall
        figures = {"difference": d.value, "low": d.low, "high": d.high, "win_rate": d.win_rate, "p_value": done.p_value}
        scored = ", which was scored again on this test text" if again else ""
        reason = f"{done.sentence()}, against version {champion.version}{scored}"
        return Decision(done.verdict == "better", reason, figures)

    return decide


def _compared_with(
    champion: ModelVersion, mine: pa.Table, cfg: Config, uri: str, root: Path | None
) -> tuple[Comparison, bool]:
    """The comparison of a version with the champion, and whether the champion had to be scored again for it.

    Raises:
        CannotCompareError: if the champion's files are gone or damaged, or it was tested on other text and cannot be
            scored.
        TrackingError: if the store does not answer now: that is no decision, and the gate is asked again later.
    """
    with tempfile.TemporaryDirectory(prefix="foundry-") as tmp:
        path = part_of(champion, uri, Path(tmp), SCORES)
        try:
            theirs = read_losses(path)
        except DataError as e:
            raise cannot_compare(champion, f"has losses by document that cannot be read ({e})") from None
        try:
            return compare_documents(theirs, mine, cfg.evaluate.bootstrap, cfg.seed), False
        except DataError as e:
            if root is None or not (root / "data/clean/test").is_dir():
                other = f"the champion (version {champion.version}) was tested on other text ({e})"
                raise CannotCompareError(other) from None
        from foundry.project.compare import in_folder, losses

        side = in_folder(part_of(champion, uri, Path(tmp), "export"), f"version {champion.version}")
        return compare_documents(losses(side, cfg, root), mine, cfg.evaluate.bootstrap, cfg.seed), True


def _root_of(version: ModelVersion) -> Path | None:
    """The current folder, if it contains the test text of the version."""
    report = Path("reports/evaluate.json")
    if not report.exists() or not Path("data/clean/test").is_dir():
        return None
    same = read_evaluation(report).test_sha256 == version.tags.get(TEST)
    return Path.cwd() if same else None


def _candidate(cfg: Config, root: Path) -> Candidate:
    folder, package = root / "artifacts/export", Path(foundry.__file__).parent
    record = verify_export(folder)
    report = read_evaluation(root / "reports/evaluate.json", DataError)
    if report.weights_sha256 != record.weights_sha256:
        raise DataError("reports/evaluate.json is of another model than artifacts/export: run `dvc repro`")
    scores = root / "artifacts/evaluation" / SCORES
    if not scores.is_file():
        raise DataError(f"{scores} is missing: run `dvc repro evaluate`")
    bpb = report.test.bits_per_byte
    tags = {
        **version_tags(root),
        TEST: report.test_sha256,
        SCORE: repr(bpb.value),
        INTERVAL: f"{bpb.low} to {bpb.high}",
        PROOF: proof_summary(record.proof),
    }
    metrics = {TEST_SCORE: bpb.value, f"{TEST_SCORE}_low": bpb.low, f"{TEST_SCORE}_high": bpb.high}
    metrics |= {f"task_{name}": task.score for name, task in report.tasks.items()}
    # Every other hash of the chain is in lineage.json, which is part of the version as well.
    artifacts = [folder / LINEAGE]
    artifacts += [root / n for n in ("params.yaml", "dvc.lock", *(f"reports/{r}" for r in REPORTS))]
    score = f"{bpb.value:.4f} bits per byte on test ({bpb.low:.4f} to {bpb.high:.4f})"
    return Candidate(
        cfg.export.model_name,
        record.fingerprint,
        folder,
        scores,
        package / "export/pyfunc_model.py",
        [package],
        description=f"{score}; run {record.fingerprint}.",
        tags=tags,
        metrics=metrics,
        artifacts=[p for p in artifacts if p.exists()],
        datasets=_datasets(record, report, folder),
    )


def _datasets(record: ExportRecord, report: EvaluationReport, folder: Path) -> list[DatasetRef]:
    """The sources, the shards and the test text, each with its digest."""
    found = [
        dataset("data/shards", record.index_sha256, "data/shards", "train"),
        dataset("data/shards/test", report.test_sha256, "data/shards/test", "test"),
    ]
    for source in read_lineage(folder).raw if (folder / LINEAGE).is_file() else []:
        digest = source.files[0].sha256 if len(source.files) == 1 else source.sha256
        found.append(dataset(source.name, digest, source.url, "source"))
    return found


def _waiting(content: str) -> Path:
    return state_dir() / "register" / content
