"""A toy pipeline: a git repository of four DVC stages that follow instructions in files `todo-NAME`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `one` feeds `two` and `side`, which are independent of each other; `three` plays the training: it reads a parameter
# and writes a report.
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
name, home = sys.argv[1], Path({home!r})
sys.path.insert(0, {repo!r})
from foundry.utils.process import die_with_parent
die_with_parent()
(home / (name + ".pid")).write_text(str(os.getpid()))
print("hello from", name, os.environ.get("FOUNDRY_FLOW_RUN_ID", "-"), flush=True)
file = home / ("todo-" + name)
todo = file.read_text().split() if file.exists() else []
def save(signum, frame):
    (home / (name + ".saved")).write_text(str(signum)); sys.exit(128 + signum)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)
if "cores" in todo: print("cores", os.sched_getaffinity(0))
if "sleep" in todo: time.sleep(120)
if "nap" in todo:
    for i in range(int(4 * float(todo[1]))):
        print(f"{{name}}: {{int(25 * i / float(todo[1]))}}%|###", flush=True)
        time.sleep(0.25)
if "meet" in todo:
    end = time.time() + 60
    while not (home / (todo[1] + ".pid")).exists():
        if time.time() > end: sys.exit(4)
        time.sleep(0.05)
if "fail" in todo: print("the reason of the failure"); sys.exit(3)
if "away" in todo: file.unlink(); print("the publisher does not answer"); sys.exit(75)
if "die" in todo: file.unlink(); os.kill(os.getpid(), signal.SIGKILL)
Path("out-" + name).write_text(Path("in-" + name).read_text())
if name == "side": Path("note.md").write_text("a report that git keeps")
if name == "three":
    import yaml
    train = yaml.safe_load(open("params.yaml"))["train"]
    Path("reports").mkdir(exist_ok=True)
    bits = abs(train["lr"] - 0.002) * 1000 + 100 / train["steps"]
    facts = {{"fingerprint": "none", "params": 12, "val_bits_per_byte": bits}}
    Path("reports/train.json").write_text(json.dumps(facts))
"""
DVC = """
stages:
  one:
    desc: first
    cmd: exec python stage.py one
    deps: [in-one]
    outs: [out-one]
    meta: {prefect: {retries: 0, timeout_s: 600}}
  two:
    desc: second
    cmd: exec python stage.py two
    deps: [in-two, out-one]
    outs: [out-two]
    meta: {prefect: {retries: 1, retry_delay_s: 0, timeout_s: 600}}
  side:
    desc: beside the second
    cmd: exec python stage.py side
    deps: [in-side, out-one]
    outs: [out-side, note.md: {cache: false}]
  three:
    desc: third
    cmd: exec python stage.py three
    deps: [in-three, out-two]
    params: [train]
    outs: [out-three]
    metrics: [reports/train.json: {cache: false}]
    meta: {prefect: {retries: 1, retry_delay_s: 0}}
"""


def git(root, *args):
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_toy(root):
    root.mkdir(parents=True)
    (root / "stage.py").write_text(STAGE.format(repo=str(ROOT), home=str(root)))
    (root / "dvc.yaml").write_text(DVC)
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    (root / "tasks").symlink_to(ROOT / "tasks")  # which the parameters name
    for name in ("one", "two", "side", "three"):
        (root / f"in-{name}").write_text(name)
    git(root, "init", "-q")
    dvc = [sys.executable, "-m", "dvc"]
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([*dvc, "init", "-q"], cwd=root, check=True, env=env)
    (root / ".gitignore").write_text("/.foundry\n/corpus\n*.pid\n*.saved\ntodo-*\nout-*\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "toy")
    return root
