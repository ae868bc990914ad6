"""The complete pipeline on the smoke profile with a corpus of its own, by real processes.

Tests share one finished project and damage copies of it.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from distributions import hidden, modules_without

from foundry.config.pipelines import LOCKS
from foundry.utils.locks import exclusive

ROOT = Path(__file__).resolve().parents[2]
STAGES = tuple(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def environment(**more):
    # An import of the flows sets FOUNDRY_ROOT: the child would work in this project instead of the test's.
    ours = ("MLFLOW_", "DVC_", "GLIBC_", "FOUNDRY_", "PREFECT_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    return {
        **env,
        "PATH": path,
        "PYTHONPATH": "",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "FOUNDRY_PROGRESS": "0",
        **more,
    }


def run(folder, *command, ok=True, **env):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=600,
    )
    text = done.stdout + done.stderr
    assert not ok or done.returncode == 0, text
    return done.returncode, text


def make_corpus(path):
    """Documents of made-up words with a skewed frequency, as JSON lines; one line is broken."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 8))) for _ in range(1500)]
    weights = [1 / (i + 5) for i in range(len(words))]
    with open(path, "w", encoding="utf-8") as f:
        for i in range(700):
            sentences = (
                " ".join(rng.choices(words, weights, k=rng.randint(5, 14))).capitalize() + "." for _ in range(9)
            )
            f.write(json.dumps({"id": i, "title": f"Document {i}", "body": " ".join(sentences)}) + "\n")
            if i == 350:
                f.write('{"id": 351, "title": "cut of\n')


def make_clone(folder):
    """A fresh clone of the tracked files on the smoke profile with a corpus of its own."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    of_chat = [p for name in ("chat*", "align*", "preferences*") for p in (folder / "reports").glob(name)]
    for path in (*of_chat, *(folder / name for name in LOCKS)):  # of another corpus
        path.unlink(missing_ok=True)
    make_corpus(folder / "corpus" / "words.jsonl")
    run(folder, "foundry.cli", "profile", "smoke")
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    source = {
        "name": "words",
        "url": "file:corpus/*.jsonl",
        "format": "jsonl",
        "text": "{title}\n\n{body}",
        "license": "CC0-1.0",
    }
    params["download"]["sources"] = [source]
    params["shard"]["weights"] = {}
    params["runtime"] |= {"checkpoint_interval": 5, "threads": 1}  # several test processes share the cores
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def repro(folder, *args, ok=True):
    return run(folder, "dvc", "--wait-for-lock", "repro", *args, ok=ok)[1]


def built(base):
    """(folder, what `dvc repro` printed) of a project whose pipeline has run.

    Its path has a space and non-ASCII letters. It is built once for all processes that test in parallel, with what
    `make repro` installs and nothing else.

    Args:
        base: a folder that these processes share.
    """
    folder, printed = base / "built" / "Größe 模型 one", base / "built" / "printed.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(base / "built" / "lock", wait=None):
        if not printed.exists():
            make_clone(folder)
            only = hidden(base / "built" / "inject", modules_without("repro"))
            printed.write_text(run(folder, "dvc", "--wait-for-lock", "repro", **only)[1])
    return folder, printed.read_text()


def commit(folder, message):
    """Everything that is not ignored, as a commit; its hash."""
    for key, value in (("user.name", "tester"), ("user.email", "tester@example.org")):
        subprocess.run(["git", "config", key, value], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "-q", "-m", message], cwd=folder, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return head.stdout.strip()
