"""Registering what lies in artifacts/export: the one function behind the export stage and `foundry register`."""

from __future__ import annotations

from pathlib import Path

import foundry
from foundry.config import Config, DataError
from foundry.export.manifest import verify_export
from foundry.tracking import Registration, register, tracking_uri
from foundry.utils.files import read_json


def register_export(cfg: Config, root: str | Path = ".") -> Registration:
    """Registers the project's export, with the numbers and reports of its evaluation.

    Raises:
        ExportError: if the export is missing or was changed.
        TrackingError: if MLflow is away.
    """
    root = Path(root).resolve()
    folder = root / "artifacts" / "export"
    parity = verify_export(folder)
    report = read_json(root / "reports" / "evaluate.json", "the evaluation; run `dvc repro evaluate`", DataError)
    if report["weights_sha256"] != parity["weights_sha256"]:
        raise DataError("reports/evaluate.json is of another model than artifacts/export: run `dvc repro`")
    bpb = report["test"]["bits_per_byte"]
    package = Path(foundry.__file__).parent
    reports = (f"reports/{n}" for n in ("evaluate.json", "samples.md", "loss.png", "data_card.md"))
    names = ("params.yaml", "dvc.lock", *reports)
    return register(
        folder,
        uri=tracking_uri(cfg.runtime),
        experiment=cfg.runtime.experiment,
        name=cfg.export.model_name,
        fingerprint=parity["fingerprint"],
        bits_per_byte=bpb["value"],
        test_sha256=report["test_sha256"],
        model_code=package / "export" / "pyfunc_model.py",
        code_paths=[package],
        metrics={
            "test_bits_per_byte": bpb["value"],
            "test_bits_per_byte_low": bpb["low"],
            "test_bits_per_byte_high": bpb["high"],
        },
        artifacts=[root / n for n in names if (root / n).exists()],
    )
