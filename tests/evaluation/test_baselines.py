"""Compressors agree with themselves, and kept sizes are those of the same texts only."""

import json
import lzma
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyppmd
import pytest

from foundry.config import FoundryError
from foundry.data.tokens.shards import read_clean
from foundry.evaluation import baselines
from foundry.evaluation.baselines import compressing, last_bytes
from foundry.evaluation.compressors import XZ_PRESET, ppmd_sizes, xz_sizes, zstd_sizes

TRAIN, TEST = b"the boy boiled the broth in the big pot " * 50, b"a bad boy broke the big pot " * 9


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".foundry/baselines"


def compressed(train=TRAIN, test=TEST):
    with compressing(train, test) as result:
        return result()


def test_compressors_need_fewer_bits_after_text_that_they_have_read(project):
    rng = np.random.default_rng(1)
    words = [bytes(rng.integers(97, 123, 6).tolist()) for _ in range(300)]
    train = b" ".join(rng.choice(words, 4000).tolist())
    test = b" ".join(rng.choice(words, 500).tolist())
    with compressing(train, test) as compressed:
        got = compressed()
    assert set(got) == {"xz", "zstd_22", "ppmd_order_6", "ppmd_order_8"}
    for sizes in got.values():
        assert 0 < sizes.given_train < 0.8 * sizes.alone
    assert got["xz"].alone == round(8 * len(lzma.compress(test, preset=9 | lzma.PRESET_EXTREME)) / len(test), 4)


def test_the_end_of_the_training_text_is_read_part_by_part(clean, tmp_path):
    texts = [t for part in read_clean(clean / "train", ["text"]) for t in (r["text"] for r in part)]
    whole = b"".join(t.encode() + b"\n\n" for t in texts)
    for n in range(3):
        rows = [{"text": t} for t in texts[n * 40 : (n + 1) * 40]]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"part-{n}.parquet")
    parts = sorted(tmp_path.iterdir())
    for most in (1, 1000, len(whole) // 2, len(whole), len(whole) + 1):
        assert last_bytes(parts, most) == whole[-most:]
    parts[0].unlink()  # what is not needed is not read
    assert last_bytes(parts, 1000) == whole[-1000:]


def test_ppmd_sizes_are_those_of_a_stream_that_decodes():
    data = b"the boy boiled the broth in the big pot " * 50
    encoder = pyppmd.Ppmd7Encoder(6, 1 << 20)
    packed = encoder.encode(data) + encoder.flush()
    assert pyppmd.Ppmd7Decoder(6, 1 << 20).decode(packed, len(data)) == data
    assert ppmd_sizes(b"", data, 6) == (len(packed), len(packed))
    with pytest.raises(ValueError, match="empty"), compressing(b"abc", b""):
        pass


@pytest.mark.parametrize("sizes", [(0, 1), (0, 5000), (1, 1), (70_000, 300), (300, 70_000), (200_001, 99_999)])
def test_sizes_after_the_training_text_are_those_of_both_texts_less_those_of_the_first(sizes):
    """xz compresses the training text once for both numbers; the plain way compresses it twice."""
    rng = np.random.default_rng(sum(sizes))
    words = [bytes(rng.integers(97, 123, 5).tolist()) for _ in range(500)]
    text = b" ".join(rng.choice(words, 60_000).tolist())
    train, test = text[: sizes[0]], text[sizes[0] : sum(sizes)]

    def xz(data):
        return len(lzma.compress(data, preset=XZ_PRESET))

    def zstd(data):
        return len(pa.Codec("zstd", compression_level=22).compress(data, asbytes=True))

    assert xz_sizes(train, test) == (xz(test), xz(train + test) - xz(train))
    assert zstd_sizes(train, test) == (zstd(test), zstd(train + test) - zstd(train))


def test_sizes_are_kept_for_the_same_texts_and_the_same_compressors_only(project, monkeypatch):
    first = compressed()
    with monkeypatch.context() as m:
        m.setattr(baselines.subprocess, "Popen", None)
        assert compressed() == first
        for train, test in ((TRAIN + b"x", TEST), (TRAIN, TEST + b"x"), (TRAIN + TEST[:1], TEST[1:])):
            with pytest.raises(TypeError):  # it is compressed again
                compressed(train, test)
        m.setattr(pyppmd, "__version__", "9.9")
        with pytest.raises(TypeError):
            compressed()
    assert len(list(project.iterdir())) == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "another size", "another key", "no file"])
def test_a_damaged_file_of_sizes_is_written_again(project, damage):
    first = compressed()
    (path,) = project.iterdir()
    content = path.read_bytes()
    sizes = json.loads(content)
    if damage == "no file":
        path.unlink()
    elif damage in ("empty", "cut"):
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    elif damage == "another size":
        sizes["sizes"]["xz"][1] += 1
        path.write_text(json.dumps(sizes))
    else:
        path.write_text(json.dumps({**sizes, "more": 1}))
    assert compressed() == first
    assert path.read_bytes() == content


def test_a_compressor_that_dies_is_an_error_and_keeps_nothing(project, monkeypatch):
    real = subprocess.Popen
    monkeypatch.setattr(
        baselines.subprocess, "Popen", lambda command, **kw: real([*command[:1], "-c", "raise SystemExit(9)"], **kw)
    )
    with pytest.raises(FoundryError, match="compressors died with exit code 9"):
        compressed()
    assert not project.exists()


def test_an_error_of_the_evaluation_ends_the_compressors(project, monkeypatch):
    started, real = [], subprocess.Popen

    def start(command, **kw):
        started.append(real([*command[:1], "-c", "import time; time.sleep(600)"], **kw))
        return started[0]

    monkeypatch.setattr(baselines.subprocess, "Popen", start)
    with pytest.raises(ZeroDivisionError), compressing(TRAIN, TEST):
        1 / 0  # noqa: B018
    assert started[0].returncode == -9
