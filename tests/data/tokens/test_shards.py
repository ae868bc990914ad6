"""Shards: every document with its bytes, for every number of workers; readable by other tools; damage is refused."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentencepiece import SentencePieceProcessor

from foundry import DataLoader
from foundry.config import DataError, FoundryError, Shard, TokenizerParams
from foundry.data.schema import COLUMNS
from foundry.data.tokens.index import read_index
from foundry.data.tokens.shard_writer import write_shards
from foundry.data.tokens.shards import Shards, read_clean
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer
from foundry.utils.files import sha256_json

PARAMS = Shard(tokens_per_shard=2048, weights={"two": 2})


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_parts(folder, rows, groups):
    """One split in part files of several row groups."""
    folder.mkdir(parents=True)
    for part in range(2):
        table = pa.Table.from_pylist(rows[part::2])
        pq.write_table(table, folder / f"part-{part:05d}.parquet", row_group_size=groups)


def test_shards_hold_every_document_with_its_raw_bytes(shards, clean, tokenizer):
    for split in ("train", "val", "test"):
        texts = [r["text"] for rows in read_clean(clean / split, ["text"]) for r in rows]
        got = list(Shards(shards, split).documents())
        assert [tokenizer.decode(t.tolist()) for t, _, _ in got] == texts
        assert [b for _, b, _ in got] == [len(t.encode()) for t in texts]
        assert all(t[0] == 1 and t[-1] == 2 for t, _, _ in got)


def test_tokens_are_those_of_sentencepiece(shards, clean, tokenizer):
    sp = SentencePieceProcessor(model_file=str(tokenizer.path))
    texts = [r["text"] for rows in read_clean(clean / "train", ["text"]) for r in rows]
    assert [t.tolist() for t, _, _ in Shards(shards, "train").documents()] == [[1, *sp.encode(t), 2] for t in texts]


def test_a_shard_has_one_source_and_is_closed_by_the_document_that_reaches_the_limit(shards):
    opened = Shards(shards, "train")
    entries = opened.entries
    assert len(entries) > 3 and {e.source for e in entries} == {"one", "two"}
    for entry, offsets, following in zip(entries, opened.offsets, [*entries[1:], None], strict=True):
        assert entry.tokens - (offsets[-1] - offsets[-2]) < 2048
        if following and following.source == entry.source:
            assert entry.tokens >= 2048


def test_the_index_counts_the_weights(shards):
    index = json.loads((shards / "index.json").read_text())
    train = index["splits"]["train"]
    tokens = {s: sum(i["tokens"] for i in train["shards"] if i["source"] == s) for s in ("one", "two")}
    assert train["epoch_tokens"] == tokens["one"] + 2 * tokens["two"]
    assert {(i["source"], i["weight"]) for i in train["shards"]} == {("one", 1.0), ("two", 2.0)}
    assert {i["weight"] for s in ("val", "test") for i in index["splits"][s]["shards"]} == {1.0}


def test_tokens_are_mapped_not_copied(shards):
    tokens = Shards(shards, "train").tokens[0]
    assert tokens.dtype == np.uint16 and not tokens.flags.owndata and not tokens.flags.writeable


def test_opening_shards_does_not_import_pandas(shards):
    code = "import sys; from foundry.data.tokens.shards import Shards; Shards(sys.argv[1], 'train')"
    check = "assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}; {check}", str(shards)], check=True)


def test_a_vocabulary_beyond_16_bits_is_stored_in_32(clean, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda self: 2**16 + 1))
    monkeypatch.setattr(Tokenizer, "keeps_text", property(lambda self: False))  # the pieces beyond do not exist
    write_shards(clean, tokenizer, PARAMS, tmp_path / "s")
    monkeypatch.undo()
    opened = Shards(tmp_path / "s", "train")
    assert opened.index.dtype == "uint32" and opened.tokens[0].dtype == np.uint32


def test_the_same_bytes_again_and_for_every_number_of_workers_and_row_groups(
    shards, clean, tokenizer, tmp_path, monkeypatch
):
    write_shards(clean, tokenizer, PARAMS, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(shards)
    columns = COLUMNS.names
    rows = {s: [r for rows in read_clean(clean / s, columns) for r in rows] for s in ("train", "val", "test")}
    for groups in (7, 1000):
        for split in rows:
            write_parts(tmp_path / f"clean{groups}" / split, rows[split], groups)
    seen = []
    for groups, workers, processes_from in ((7, 1, 1 << 30), (7, 3, 1 << 30), (7, 3, 0), (1000, 1, 0)):
        monkeypatch.setattr("foundry.data.tokens.tokenize.PROCESSES_FROM", processes_from)
        count = []
        out = tmp_path / f"{groups}-{workers}-{processes_from}"
        write_shards(tmp_path / f"clean{groups}", tokenizer, PARAMS, out, count.append, workers)
        assert sum(count) == sum(map(len, rows.values()))
        seen.append(tree(out))
    assert seen[0] == seen[1] == seen[2] == seen[3] and len(seen[0]) > 6


def test_wrong_clean_parts_are_refused(clean, tokenizer, tmp_path):
    copy = shutil.copytree(clean, tmp_path / "clean")
    part = copy / "val" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["doc_id"]), part)
    with pytest.raises(DataError, match=r"part-00000.parquet lacks the columns doc_id"):
        write_shards(copy, tokenizer, PARAMS, tmp_path / "s")
    pq.write_table(table.set_column(1, "text", pa.array([None, *table["text"].to_pylist()[1:]], pa.string())), part)
    with pytest.raises(DataError, match=r"part-00000.parquet does not contain clean documents: .*text: .*rows 0"):
        write_shards(copy, tokenizer, PARAMS, tmp_path / "s")
    longer = pa.array([n + (i in (3, 5)) for i, n in enumerate(table["n_bytes"].to_pylist())], pa.int64())
    pq.write_table(table.set_column(4, "n_bytes", longer), part)
    with pytest.raises(DataError, match=r"n_bytes is not the length of text in UTF-8 bytes \(rows 3, 5\)"):
        write_shards(copy, tokenizer, PARAMS, tmp_path / "s")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable parquet file"):
        write_shards(copy, tokenizer, PARAMS, tmp_path / "s", workers=2)
    part.unlink()
    with pytest.raises(DataError, match="run the clean stage"):
        write_shards(copy, tokenizer, PARAMS, tmp_path / "s")
    assert not (tmp_path / "s").exists() and not list(tmp_path.glob(".s.*"))


def test_a_killed_worker_is_reported_and_leaves_nothing(clean, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("foundry.data.tokens.tokenize.PROCESSES_FROM", 0)
    monkeypatch.setattr("foundry.data.tokens.tokenize.encode_group", _die)
    with pytest.raises(FoundryError, match="was killed"):
        write_shards(clean, tokenizer, PARAMS, tmp_path / "s", workers=2)
    assert not list(tmp_path.iterdir())


def _die(encoder, group):
    os.kill(os.getpid(), signal.SIGKILL)


# others can read them


def test_plain_pyarrow_duckdb_and_polars_read_a_shard(shards):
    import duckdb
    import polars as pl

    path = shards / "train" / "shard-00000.arrow"
    expected = [(t.tolist(), b) for t, b, _ in Shards(shards, "train").documents()][:5]

    shard = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert list(zip(shard["tokens"].to_pylist(), shard["n_bytes"].to_pylist(), strict=True))[:5] == expected

    frame = pl.read_ipc(path)
    assert list(zip(frame["tokens"].to_list(), frame["n_bytes"].to_list(), strict=True))[:5] == expected

    rows = duckdb.sql("select tokens, n_bytes from shard limit 5").fetchall()
    assert rows == expected
    total = duckdb.sql("select sum(len(tokens)), sum(n_bytes) from shard").fetchall()
    entry = Shards(shards, "train").entries[0]
    assert total == [(entry.tokens, entry.bytes)]


def test_the_examples_of_the_docs_run(shards, tokenizer, tmp_path, monkeypatch, capsys):
    """Those of docs/en/data.md, unchanged."""
    page = Path(__file__).parents[3] / "docs/en/data.md"
    section = page.read_text(encoding="utf-8").split("## Reading shards")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(code) == 4
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to(shards)
    (tmp_path / "artifacts/tokenizer").mkdir(parents=True)
    shutil.copy(tokenizer.path, tmp_path / "artifacts/tokenizer/tokenizer.model")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(code), {})
    assert capsys.readouterr().out.rstrip().endswith(_first_text(shards, tokenizer))


def _first_text(shards, tokenizer):
    return tokenizer.decode(next(Shards(shards, "train").documents())[0].tolist())


# damage


def test_a_changed_cut_or_missing_shard_is_refused(shards, tmp_path):
    path = shutil.copytree(shards, tmp_path / "s") / "train" / "shard-00001.arrow"
    data = path.read_bytes()
    for place in (8, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DataError, match=r"shard-00001.arrow was changed (?s:.*)foundry verify --repair"):
            DataLoader(tmp_path / "s", 4, 32)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"shard-00001.arrow was changed"):
        DataLoader(tmp_path / "s", 4, 32)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        DataLoader(tmp_path / "s", 4, 32)


def test_another_tokenizer_is_refused(shards, tokenizer, tmp_path):
    assert Shards(shards, "train", tokenizer_sha256=tokenizer.sha256).entries
    train_tokenizer(["other words " * 50], TokenizerParams(vocab_size=300), tmp_path / "tokenizer.model")
    other = Tokenizer(tmp_path).sha256
    with pytest.raises(
        DataError, match=rf"tokenizer {tokenizer.sha256[:12]}…, not with {other[:12]}…: run `dvc repro shard`"
    ):
        Shards(shards, "train", tokenizer_sha256=other)


def test_the_index_is_one_schema_for_writer_and_readers(shards, tmp_path):
    index = read_index(shards)
    index.write(tmp_path)
    assert (tmp_path / "index.json").read_bytes() == (shards / "index.json").read_bytes()
    assert index.sha256 == sha256_json(json.loads((shards / "index.json").read_text()))
    assert index.file_hashes() == {
        str(p): hashlib.sha256(b).hexdigest() for p, b in tree(shards).items() if p.parts[1:]
    }


@pytest.mark.parametrize(("key", "place"), [("dtype", "dtype"), ("splits", "splits")])
def test_an_index_without_a_value_is_refused_and_the_value_is_named(shards, tmp_path, key, place):
    index = json.loads((shards / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({k: v for k, v in index.items() if k != key}))
    with pytest.raises(DataError, match=rf"is not an index of token shards: {place}: Field required.*dvc repro shard"):
        read_index(tmp_path)


def test_an_index_of_another_format_or_none_is_refused(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "s")
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Shards(copy, "train")
    (copy / "index.json").write_text("{")
    with pytest.raises(DataError, match="not readable JSON"):
        Shards(copy, "train")
    (copy / "index.json").unlink()
    with pytest.raises(DataError, match="dvc repro shard"):
        Shards(copy, "train")
