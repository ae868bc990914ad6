"""An earlier result is restored, even of a stage that DVC leaves out of its run cache: one with a report in git."""

import os
import subprocess
import sys

from toy import ROOT, make_toy


def test_what_is_changed_back_is_restored_not_built_again(tmp_path):
    toy = make_toy(tmp_path / "toy")
    (toy / "more").mkdir()
    (toy / "more/dvc.yaml").write_text(
        "stages: {other: {cmd: echo, deps: [../in-one]}}\n"
    )  # a file of stages of the user's
    env = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}

    def python(*command):
        done = subprocess.run([sys.executable, *command], cwd=toy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def build(text):
        (toy / "in-side").write_text(text)
        out = python("-m", "dvc", "repro")
        python("-m", "flows.remember")
        assert (toy / "out-side").read_text() == text
        return out

    assert "hello from side" in build("side") and "hello from side" in build("other")
    assert "hello from" not in build("side")
