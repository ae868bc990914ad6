"""`foundry serve` as a process: tiny exports, a registry with versions of them, a client, and a server to signal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import torch
from example_records import example_proof
from small_server import wait_for

from foundry.config import ModelConfig, read_yaml, yaml_text
from foundry.export.huggingface import export_huggingface
from foundry.export.manifest import hash_files, write_record
from foundry.export.proof import ExportRecord
from foundry.models import MiniLLM
from foundry.models.files import weights_sha256
from foundry.tracking.names import CONTENT
from foundry.tracking.settings import connect
from foundry.utils.bootstrap import Interval
from foundry.utils.files import sha256_tree

ROOT = Path(__file__).parents[2]


def tiny_model(seed=0, context=64):
    """Random in every tensor."""
    torch.manual_seed(seed)
    model = MiniLLM(
        ModelConfig(
            vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=context, norm_eps=1e-3
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    return model.eval()


def make_export(folder, model, tokenizer):
    """An export as `foundry.export` leaves one, without its comparisons; returns the hash of its weights."""
    export_huggingface(model, tokenizer, folder / "hf")
    sha256 = weights_sha256(model)
    record = ExportRecord(
        model_name="tiny",
        fingerprint=sha256[:16],
        index_sha256="1" * 64,
        tokenizer_sha256=tokenizer.sha256,
        weights_sha256=sha256,
        bits_per_byte=Interval(value=1.5, low=1.4, high=1.6),
        proof=example_proof(),
        files=hash_files(folder),
    )
    write_record(folder, record)
    return sha256


def make_version(uri, source):
    """Registers the folder `source`/artifacts/export as the next version of `tiny`."""
    client = connect(uri)
    with contextlib.suppress(Exception):
        client.create_registered_model("tiny")
    content = sha256_tree(source / "artifacts/export")
    made = client.create_model_version("tiny", source.as_uri(), tags={CONTENT: content})
    return str(made.version)


def write_params(root, **serving):
    """The project's parameters with other values in `serving`; the model is named `tiny`."""
    params = read_yaml(ROOT / "params.yaml")
    params["serving"] |= {"port": 0, "max_running": 8, **serving}
    params["export"]["model_name"] = "tiny"
    params["runtime"] |= {"device": "cpu"}
    (root / "params.yaml").write_text(yaml_text(params), encoding="utf-8")


@dataclass
class Reply:
    status: int
    headers: Message  # its keys are found in every spelling
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Served:
    """A running server: its process, its address, and what it printed so far."""

    process: subprocess.Popen
    lines: list = field(default_factory=list)

    @property
    def url(self):
        found = [m[1] for line in self.lines if (m := re.search(r"page +(http://\S+)/", line))]
        return found[0] if found else None

    @property
    def log(self):
        return "\n".join(self.lines)

    def call(self, path, body=None, timeout=60):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Reply(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as e:
            return Reply(e.code, e.headers, e.read())

    def stop(self, sig=signal.SIGTERM, timeout=60):
        self.process.send_signal(sig)
        return self.process.wait(timeout)


@contextlib.contextmanager
def serving(root, *arguments, ready=True):
    """Starts `foundry serve` in a folder and kills it at the end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env.pop("FOUNDRY_API_KEYS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "foundry.cli", "serve", *map(str, arguments)],
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    served = Served(process)

    def read():
        for line in process.stdout:
            served.lines.append(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if ready:
            wait_for(lambda: served.url or process.poll() is not None, 120)
            assert served.url, served.log
        yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(10)
        process.stdout.close()
