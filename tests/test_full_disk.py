"""A disk that is really full, under each writer: one clear error with the space that is needed and free.

Nothing is left half written, and the old content is unchanged. On a tmpfs where this user may mount one, and everywhere
on files whose device is `/dev/full`.
"""

import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from foundry.config import DiskError, ModelConfig
from foundry.data.schema import PartWriter
from foundry.data.tokens.shard_writer import DocumentSlice, _write_shard
from foundry.export.gguf_file import export_gguf
from foundry.export.huggingface import export_huggingface
from foundry.models import MiniLLM, save_model
from foundry.tracking.spool import Spool
from foundry.utils import files
from foundry.utils.checkpoint import save_checkpoint
from foundry.utils.files import atomic_dir, sha256_tree, write_array, write_json

SIZE = 256 << 10  # bytes of the small disk
MODEL = ModelConfig(vocab_size=400, dim=128, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=256, max_seq_len=32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MiniLLM(MODEL).eval()


@pytest.fixture(scope="module")
def tmpfs(tmp_path_factory):
    """A disk of 256 KiB; None where this user may not mount one."""
    folder = tmp_path_factory.mktemp("small")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["tmpfs", "/dev/full"])
def full(request, tmpfs, tmp_path, monkeypatch):
    """A folder whose disk takes no large file."""
    if request.param == "tmpfs":
        if tmpfs is None:
            pytest.skip("this user may not mount a tmpfs; the other half of this test writes to /dev/full")
        return tmpfs
    opened = os.open

    def refusing(path, flags, *rest, **options):
        """Files that are made for writing get a device that takes nothing."""
        fd = opened(path, flags, *rest, **options)
        if flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
            os.dup2(opened("/dev/full", os.O_WRONLY), fd)
        return fd

    def making(dir, prefix, suffix):
        name = f"{dir}/{prefix}x{suffix}"
        return os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), name

    monkeypatch.setattr(files.os, "open", refusing)
    monkeypatch.setattr(files.tempfile, "mkstemp", making)
    return tmp_path


def parts(folder):
    text = np.random.default_rng(0).integers(97, 122, 600_000, dtype=np.uint8).tobytes()
    with atomic_dir(folder / "out") as tmp, PartWriter(tmp / "train") as out:
        out.add("0" * 16, text, "source", "und")


def shard(folder):
    n = 200_000
    group = SimpleNamespace(
        tokens=np.arange(n, dtype=np.uint16),
        offsets=np.array([0, n]),
        n_bytes=np.array([n]),
        doc_id=pa.array(["0" * 16]),
    )
    with atomic_dir(folder / "out") as tmp:
        _write_shard(tmp / "shard-00000.arrow", "source", 1.0, [DocumentSlice(group, 0, 1)])


def huggingface(folder, model, tokenizer):
    with atomic_dir(folder / "out") as tmp:
        export_huggingface(model, tokenizer, tmp / "hf")


WRITERS = {
    "values": lambda folder, model, tokenizer: write_json(folder / "out", "x" * 600_000),
    "array": lambda folder, model, tokenizer: write_array(folder / "out", np.zeros(200_000)),
    "checkpoint": lambda folder, model, tokenizer: save_checkpoint(folder / "out", {"x": torch.zeros(200_000)}, {}),
    "model": lambda folder, model, tokenizer: save_model(folder / "out", model),
    "parquet": lambda folder, model, tokenizer: parts(folder),
    "shard": lambda folder, model, tokenizer: shard(folder),
    "Hugging Face": huggingface,
}


LIBRARIES = ("model", "Hugging Face")  # a library opens their files itself, so only a real disk can refuse it


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_reports_a_full_disk_alike_and_leaves_what_was_there(full, name, model, tokenizer):
    if name in LIBRARIES and not full.is_mount():
        pytest.skip("safetensors opens the file itself: only a real disk can refuse it")
    before = sha256_tree(full)
    with pytest.raises(
        DiskError, match=r"cannot write in .*: No space left on device; .* are free there, at least .* are needed"
    ) as e:
        WRITERS[name](full, model, tokenizer)
    assert e.value.needed > 0 and e.value.folder.startswith(str(full))
    assert sha256_tree(full) == before and not list(full.iterdir())
    if full.is_mount():
        assert e.value.free == SIZE  # what was half written is gone, so the user can compare
        assert e.value.needed <= 4 << 20


def test_gguf_files_on_a_full_disk(tmpfs, model, tokenizer):
    """The package opens the file itself, so only a real disk can refuse it."""
    if tmpfs is None:
        pytest.skip("this user may not mount a tmpfs")
    with pytest.raises(DiskError, match="No space left on device"):
        export_gguf(model, tokenizer, tmpfs / "out" / "a.gguf", "f32", "name")
    assert not list((tmpfs / "out").iterdir())
    (tmpfs / "out").rmdir()


def test_metrics_on_a_full_disk_stay_in_memory_and_are_written_when_there_is_room(tmpfs):
    if tmpfs is None:
        pytest.skip("this user may not mount a tmpfs; tests/tracking/test_tracker.py injects the error")
    (tmpfs / "filler").write_bytes(bytes(SIZE - 8192))
    spool = Spool(tmpfs / "spool")
    for step in range(400):
        spool.log(step, {"loss": 1.0})
    assert spool.unwritten
    (tmpfs / "filler").unlink()
    spool.sync()
    assert not spool.unwritten and len((tmpfs / "spool" / "metrics.jsonl").read_text().splitlines()) == 400
    spool.close()
