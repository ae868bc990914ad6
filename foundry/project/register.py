"""Registering what lies in artifacts/export, and who is champion: behind the export stage, `foundry register`, `promote` and `rollback`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import foundry
from foundry.config import Config, DataError, FoundryError, TrackingError, load_params
from foundry.evaluation.compare import compare_documents
from foundry.evaluation.losses import read_losses
from foundry.export.lineage import NAME as LINEAGE
from foundry.export.lineage import read_lineage
from foundry.export.manifest import verify_export
from foundry.export.proof import ExportRecord, Proof
from foundry.tracking import DatasetRef, Registration, register, tracking_uri
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.names import INTERVAL, PROOF, SCORE, TEST
from foundry.tracking.promotion import Decide, Decision, force, settle, whoami
from foundry.tracking.promotion import rollback as roll_back
from foundry.tracking.registry import SCORES, Candidate, fetch, find, reached, stored
from foundry.utils.files import (
    atomic_dir,
    make_folder,
    open_to_write,
    read_json,
    remove_dir,
    sha256_tree,
    state_dir,
    write_json,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow.entities.model_registry import ModelVersion

REPORTS = ("evaluate.json", "report.html", "samples.md", "loss.png", "data_card.md")


def register_export(cfg: Config, root: str | Path = ".") -> Registration:
    """Registers the project's export, with the numbers and reports of its evaluation, and asks the gate.

    When MLflow is away, a copy of all that is needed waits under `.foundry/register/`, for `foundry sync`.

    Raises:
        ExportError: if the export is missing or was changed.
        DataError: if the evaluation is missing or of another model.
        TrackingError: if MLflow is away.
    """
    root = Path(root).resolve()
    candidate = _candidate(cfg, root)
    uri = tracking_uri(cfg.runtime)
    waiting = _waiting(sha256_tree(candidate.export_dir))
    try:
        done = register(
            candidate,
            uri=uri,
            experiment=cfg.runtime.experiment,
            decide=_gate(cfg, read_losses(candidate.scores), uri, root),
        )
    except TrackingError:
        _keep(root, waiting, candidate)
        raise
    if waiting.exists():
        remove_dir(waiting)
    return done


def deliver_registrations(cfg: Config) -> list[str]:
    """Registers what could not be registered before, at today's address: a line for each registration that waited.

    Raises:
        TrackingError: if MLflow is still away, or one that waits cannot be registered; the others are.
    """
    told, problems = [], []
    for folder in sorted(p.parent for p in (state_dir() / "register").glob("[!.]*/waiting.json")):
        try:
            waiting = load_params(folder / "params.yaml").model_copy(update={"runtime": cfg.runtime})
            done = register_export(waiting, folder)
        except FoundryError as e:
            problems.append(f"{folder.name[:12]}: {e}")
            continue
        told.append(f"version {done.version} of {done.name}: {done.reason}")
    if problems:
        lines = [*told, "not every model that waits could be registered; run `foundry sync` again later:", *problems]
        raise TrackingError("\n  - ".join(lines))
    return told


def _keep(root: Path, waiting: Path, candidate: Candidate) -> None:
    """Copies what a registration reads: a worktree, and the outs of a stage, do not stay. The copy is complete, or is not there."""
    if root == waiting or waiting.exists():
        return
    with atomic_dir(waiting) as tmp:
        for path in (candidate.export_dir, candidate.scores, *candidate.artifacts):
            for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                target = tmp / file.relative_to(root)
                make_folder(target.parent)
                with open(file, "rb") as source, open_to_write(target) as f:
                    shutil.copyfileobj(source, f, 1 << 20)
        write_json(tmp / "waiting.json", {"tags": {k: v for k, v in candidate.tags.items() if k in lineage_tags(root)}})


def promote(cfg: Config, which: str, why: str | None = None) -> tuple[bool, str]:
    """Lets the gate decide about a version, or makes it champion against the gate: (is champion, why).

    Args:
        which: a version or an alias.
        why: the reason of a forced promotion; None asks the gate.

    Raises:
        ConfigError: if there is no such version.
        TrackingError: if MLflow is away.
    """
    uri, name = tracking_uri(cfg.runtime), cfg.export.model_name
    with reached(uri, f"promote {which} of {name}") as client:
        version = find(client, address(name, which))
        if why is not None:
            before = force(client, name, str(version.version), why)
            return True, f"forced by {whoami()}: {why} (champion before: {before})"
        with tempfile.TemporaryDirectory(prefix="foundry-") as tmp:
            mine = read_losses(fetch(client, version, uri, Path(tmp), SCORES))
        return settle(client, name, version, _gate(cfg, mine, uri, _root_of(version)))


def rollback(cfg: Config, why: str) -> tuple[str, str]:
    """Returns `champion` to the version before: (the one that was, the one that is).

    Raises:
        ConfigError: if there was none before.
        TrackingError: if MLflow is away.
    """
    name = cfg.export.model_name
    with reached(tracking_uri(cfg.runtime), f"roll {name} back") as client:
        return roll_back(client, name, why)


def address(name: str, which: str) -> str:
    return f"models:/{name}/{which}" if which.isdigit() else f"models:/{name}@{which}"


def _gate(cfg: Config, mine: pa.Table, uri: str, root: Path | None = None) -> Decide:
    """Better than the champion on the same test bytes, by the paired interval. The proof was checked before.

    Args:
        root: a project whose test text `mine` is of: a champion that was tested on other text is scored on it.
    """

    def decide(champion: ModelVersion | None) -> Decision:
        if champion is None:
            return Decision(True, "there was no champion")
        anew = ""
        with tempfile.TemporaryDirectory(prefix="foundry-") as tmp:
            path, missing = _kept(champion, uri, Path(tmp), SCORES)
            if path is None:
                return Decision(False, missing)
            try:
                theirs = read_losses(path)
            except DataError as e:
                return Decision(False, _cannot(champion, f"has losses by document that cannot be read ({e})"))
            try:
                done = compare_documents(theirs, mine, cfg.evaluate.bootstrap, cfg.seed)
            except DataError as e:
                if root is None or not (root / "data/clean/test").is_dir():
                    return Decision(False, f"the champion (version {champion.version}) was tested on other text ({e})")
                from foundry.project.compare import in_folder, losses

                path, missing = _kept(champion, uri, Path(tmp), "export")
                if path is None:
                    return Decision(False, missing)
                side = in_folder(path, f"version {champion.version}")
                done = compare_documents(losses(side, cfg, root), mine, cfg.evaluate.bootstrap, cfg.seed)
                anew = ", which was scored anew on this test text"
        d = done.overall
        figures = {"difference": d.value, "low": d.low, "high": d.high, "win_rate": d.win_rate, "p_value": done.p_value}
        return Decision(
            done.verdict == "better", f"{done.sentence()}, against version {champion.version}{anew}", figures
        )

    return decide


def _kept(champion: ModelVersion, uri: str, into: Path, part: str) -> tuple[Path | None, str]:
    """(a part of the champion, copied into a folder; nothing), or (None, why it does not exist any more).

    Raises:
        TrackingError: if the store does not answer now: that is no decision, and is asked again later.
    """
    from foundry.tracking.settings import connect, reason

    try:
        client = connect(uri)
        parts, where = stored(client, champion, uri)
        if part in parts:
            return fetch(client, champion, uri, into, part), ""
    except Exception as e:  # MLflow raises its own and every store's
        raise TrackingError(
            f"the gate cannot decide now: the files of the champion (version {champion.version}) do not answer "
            f"({reason(e)}). `foundry sync` asks it again, as does `foundry promote`"
        ) from e
    if not parts:
        return None, _cannot(champion, f"has no files any more at {where}")
    return None, _cannot(champion, f"has no {'losses by document' if part == SCORES else part} to compare with")


def _cannot(champion: ModelVersion, why: str) -> str:
    return f"the champion (version {champion.version}) {why}; `foundry promote … --force --why …` decides"


def _root_of(version: ModelVersion) -> Path | None:
    """This folder, if what lies in it is the test text of the version."""
    report = Path("reports/evaluate.json")
    if not report.exists() or not Path("data/clean/test").is_dir():
        return None
    same = read_json(report, "the evaluation")["test_sha256"] == version.tags.get(TEST)
    return Path.cwd() if same else None


def _candidate(cfg: Config, root: Path) -> Candidate:
    folder, package = root / "artifacts/export", Path(foundry.__file__).parent
    record = verify_export(folder)
    report = read_json(root / "reports/evaluate.json", "the evaluation; run `dvc repro evaluate`", DataError)
    if report["weights_sha256"] != record.weights_sha256:
        raise DataError("reports/evaluate.json is of another model than artifacts/export: run `dvc repro`")
    scores = root / "artifacts/evaluation" / SCORES
    if not scores.is_file():
        raise DataError(f"{scores} is missing: run `dvc repro evaluate`")
    bpb = report["test"]["bits_per_byte"]
    waiting = root / "waiting.json"
    tags = {
        **(read_json(waiting, "a registration that waits")["tags"] if waiting.exists() else lineage_tags(root)),
        TEST: report["test_sha256"],
        SCORE: repr(bpb["value"]),
        INTERVAL: f"{bpb['low']} to {bpb['high']}",
        PROOF: proof_summary(record.proof),
    }
    tags.pop("dvc.lock.md5", None)  # the file itself is kept with the run
    metrics = {f"test_bits_per_byte{k}": bpb[key] for k, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
    metrics |= {f"task_{name}": t["score"] for name, t in report.get("tasks", {}).items()}
    # Every other hash of the chain is in lineage.json, which is part of the version as well.
    artifacts = [folder / LINEAGE]
    artifacts += [root / n for n in ("params.yaml", "dvc.lock", *(f"reports/{r}" for r in REPORTS))]
    return Candidate(
        cfg.export.model_name, record.fingerprint, folder, scores, package / "export/pyfunc_model.py", [package],
        description=f"{bpb['value']:.4f} bits per byte on test ({bpb['low']:.4f} to {bpb['high']:.4f}); run {record.fingerprint}.",
        tags=tags, metrics=metrics, artifacts=[p for p in artifacts if p.exists()], datasets=_datasets(record, report, folder),
    )  # fmt: skip


def _datasets(record: ExportRecord, report: dict[str, Any], folder: Path) -> list[DatasetRef]:
    """The sources, the shards and the test text, each with its digest (MLflow keeps 36 characters of it)."""
    found = [
        DatasetRef("data/shards", record.index_sha256[:36], "data/shards", "train"),
        DatasetRef("data/shards/test", report["test_sha256"][:36], "data/shards/test", "test"),
    ]
    for source in read_lineage(folder).raw if (folder / LINEAGE).is_file() else []:
        digest = source.files[0].sha256 if len(source.files) == 1 else source.sha256
        found.append(DatasetRef(source.name, digest[:36], source.url, "source"))
    return found


def proof_summary(proof: Proof) -> str:
    """What was proved, for a tag: the export is written only when it held."""
    ours = "transformers: logits, ids and greedy text equal"
    return f"{ours}; llama.cpp: {'equal' if proof.llama_cpp.proved else 'not proved here'}"


def _waiting(content: str) -> Path:
    return state_dir() / "register" / content
