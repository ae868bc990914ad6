"""A training that is killed repeatedly is one run in MLflow.

It has each step once and in order, with the numbers of an uninterrupted training.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tracking_servers import history

from foundry.tracking.description import METRICS
from foundry.tracking.settings import connect

RUNNER = Path(__file__).resolve().parents[1] / "training/runner.py"
STEPS = 30


def start(shards, folder, uri):
    command = [sys.executable, str(RUNNER), str(shards), str(folder), str(folder / "model"), f"track={uri}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def metrics(uri, run):
    """{metric: [(step, value, time)] in the order of the steps}."""
    client = connect(uri)
    points = {k: client.get_metric_history(run.info.run_id, k) for k in run.data.metrics}
    return {k: sorted((m.step, m.value, m.timestamp) for m in v) for k, v in points.items()}


@pytest.mark.slow
def test_a_killed_and_resumed_training_is_one_run_without_doubled_points(root, uri, shards):
    """Checkpoints are 4 steps apart, and kills between them: the steps since the last checkpoint are trained twice."""
    folder = root / ".foundry/killed"
    for kill_at in (7, 19):
        p = start(shards, folder, uri)
        for line in p.stdout:
            if line == f"step {kill_at}\n":
                break
        p.kill()
        p.communicate()
    p = start(shards, folder, uri)
    text, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "resumes from the checkpoint of step" in text, text
    assert "step 18\n" in text  # a repeated step: something could have been doubled
    (fingerprint,) = (f.name for f in folder.iterdir() if (f / "run.json").exists())
    run, _ = history(uri, fingerprint, experiment="runner")
    found = metrics(uri, run)
    assert run.info.status == "FINISHED"
    for key in ("loss", "lr", "grad_norm", "tokens_per_second"):
        assert [s for s, _, _ in found[key]] == list(range(1, STEPS + 1)), key
    assert [s for s, _, _ in found["validation/bits_per_byte"]] == [10, 20, 30]
    for key, points in found.items():
        assert [s for s, _, _ in points] == sorted({s for s, _, _ in points}), key
        assert [t for _, _, t in points] == sorted(t for _, _, t in points), key
    assert found["system/cpu_utilization_percentage"]
    assert {k for k in found if not k.startswith("system/")} <= set(
        METRICS
    )  # each is explained in the run's description

    curve, _ = json.loads((folder / "model.curve.json").read_text())
    assert [(s, float(f"{v:.6g}")) for s, v, _ in found["loss"]] == [(row["step"], row["loss"]) for row in curve]
