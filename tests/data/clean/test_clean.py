"""The clean stage: every loss is counted, splits do not leak, the bytes are always the same."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from cleaning import MINE, OUT, REPORTS, digests, quarantined, rejected, rows, run

from foundry.config import DataError
from foundry.data import schema
from foundry.data.schema import COLUMNS, PartWriter, check_documents, doc_id
from foundry.data.splits import SPLITS, split_of

ROOT = Path(__file__).parents[3]


def test_every_document_is_kept_or_dropped_for_a_counted_reason(corpus):
    report = run(MINE)
    d = report["documents"]
    assert d["in"] == 283 and d["in"] == d["kept"] + sum(d["dropped"].values())
    assert {k: n for k, n in d["dropped"].items() if n} == {
        "too_short": 10,
        "symbol_ratio": 1,
        "duplicate_lines": 1,
        "repeated_ngrams": 1,
        "exact_duplicate": 10,
        "near_duplicate": 20,
    }
    assert (report["records"]["in"], report["records"]["quarantined"]) == (284, 1)
    (bad,) = report["records"]["examples"]
    assert (bad["file"], bad["reason"], bad["record"]) == ("mine/b.jsonl", "broken_json", 133)
    (place,) = quarantined()
    data = (corpus / "corpus/b.jsonl").read_bytes()
    assert place["source"] == "mine" and data[place["offset"] :] == b'{"text": "broken\n'
    lines = rejected()
    for reason, n in d["dropped"].items():
        assert sum(x["reason"] == reason for x in lines) == n
    files = {f"mine/{n}.jsonl": (corpus / f"corpus/{n}.jsonl").read_bytes().split(b"\n") for n in "ab"}
    for x in lines:
        assert x["source"] == "mine" and x["rule"] and isinstance(x["value"], int | float) and "threshold" in x
        assert x["excerpt"][:40] in json.loads(files[x["file"]][x["record"]])["text"]
    assert json.loads((REPORTS / "clean.json").read_text()) == report
    kept = rows()
    assert len(kept) == d["kept"] == sum(s["documents"] for s in report["splits"].values())
    assert sum(r["n_bytes"] for r in kept) == sum(s["bytes"] for s in report["splits"].values())


def test_columns_are_the_contract(corpus):
    run(MINE)
    for split in SPLITS:
        (part,) = (OUT / split).iterdir()
        assert part.name == "part-00000.parquet"
        assert pq.read_schema(part).remove_metadata().equals(COLUMNS)
        check_documents(pq.read_table(part), str(part))
    for r in rows():
        data = r["text"].encode()
        assert r["doc_id"] == hashlib.sha256(data).hexdigest()[:16] and r["n_bytes"] == len(data)
        assert (r["source"], r["lang"]) == ("mine", "en")


def test_rerun_is_the_same_bytes(corpus):
    run(MINE)
    first = digests()
    assert len(first) == 11
    run(MINE)
    assert digests() == first


def test_order_is_that_of_sources_files_and_records(project, story, write_jsonl):
    names = ["z", "a"]
    order = [story(i) for i in range(120)]
    write_jsonl(project / "corpus/z/b.jsonl", order[40:80])
    write_jsonl(project / "corpus/z/a.jsonl", order[:40])
    write_jsonl(project / "corpus/a/a.jsonl", order[80:])
    run(*({"name": n, "url": f"file:corpus/{n}/*.jsonl"} for n in names))
    for split in SPLITS:
        places = [order.index(r["text"]) for r in rows(split)]
        assert places == sorted(places)
    assert len(rows()) == 120


def test_no_similar_pair_is_in_different_splits(corpus, story):
    run(MINE, val_fraction=0.3, test_fraction=0.3)

    def grams(text):
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    sets = {s: [grams(r["text"]) for r in rows(s)] for s in SPLITS}
    assert all(len(s) > 50 for s in sets.values())
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert max(len(x & y) / len(x | y) for x in sets[a] for y in sets[b]) < 0.7


def test_splits_stay_when_documents_are_added(project, story, write_jsonl):
    texts = [story(i) for i in range(400)]
    write_jsonl(project / "corpus/b.jsonl", texts[:200])
    run(MINE)
    before = {r["doc_id"]: s for s in SPLITS for r in rows(s)}
    write_jsonl(project / "corpus/a.jsonl", texts[200:])  # sorts before the others
    run(MINE)
    after = {r["doc_id"]: s for s in SPLITS for r in rows(s)}
    assert len(after) == 400 and {k: after[k] for k in before} == before


def test_splits_have_about_their_share():
    n = 20_000
    drawn = [split_of(doc_id(str(i).encode()), 0.02, 0.03) for i in range(n)]
    assert drawn.count("val") / n == pytest.approx(0.02, abs=0.004)
    assert drawn.count("test") / n == pytest.approx(0.03, abs=0.005)


@pytest.mark.parametrize("policy", ["repair", "reject"])
def test_invalid_utf8_is_repaired_or_dropped_and_counted(project, story, policy):
    lines = [json.dumps({"text": story(i)}).encode() for i in range(100)]
    lines[7] = lines[7].replace(b'{"text": "', b'{"text": "caf\xe9 ')
    (project / "corpus").mkdir()
    (project / "corpus/a.jsonl").write_bytes(b"\n".join(lines))
    report = run(MINE, invalid_utf8=policy)
    assert report["documents"]["repaired"] == {"invalid_utf8": 1}
    assert report["documents"]["dropped"]["invalid_utf8"] == (policy == "reject")
    assert sum("café" in r["text"] for r in rows()) == (policy == "repair")
    assert report["documents"]["in"] == 100 == report["records"]["in"]


def test_excerpt_of_an_unreadable_record_is_always_readable_json(project, story):
    (project / "corpus").mkdir()
    lines = [json.dumps({"text": story(i)}).encode() for i in range(100)] + [
        b'{"body": "\\ud800 lone"}',
        b'\xff\xfe{"',
        b'{"text": "\\udc80"}',
    ]
    (project / "corpus/a.jsonl").write_bytes(b"\n".join(lines))
    assert run(MINE)["records"]["quarantined"] == 2
    assert [r["reason"] for r in quarantined()] == ["missing_field text", "broken_json"]
    assert [r["reason"] for r in rejected()] == ["too_short"]


def test_text_is_repaired(project, story, write_jsonl):
    texts = [story(i) for i in range(100)]
    texts[0] += " The cafÃ© sells 2 tbs<nowiki/>p &amp; ½\xa0cup  of\u200b oil ▁ here."
    write_jsonl(project / "corpus/a.jsonl", texts)
    report = run(MINE)
    (text,) = [r["text"] for r in rows() if "café" in r["text"]]
    assert text.endswith(" The café sells 2 tbsp & ½ cup of oil here.")
    assert report["documents"]["repaired"] == {"mojibake": 1, "html": 1, "normalized": 1}
    run(MINE, fix_mojibake=False, strip_html=False)
    assert any("cafÃ© sells 2 tbs<nowiki/>p &amp;" in r["text"] for r in rows())


def test_a_source_chooses_what_happens_to_html(project, story, write_jsonl):
    for name in ("auto", "strip", "keep"):
        some = [story(hash_of, 60) for hash_of in range(ord(name[0]) * 1000, ord(name[0]) * 1000 + 60)]
        some[0] += f" {name}: an Option<S> and a <b>bold</b> word."
        write_jsonl(project / f"corpus/{name}.jsonl", some)
    sources = [MINE | {"name": n, "url": f"file:corpus/{n}.jsonl", "html": n} for n in ("auto", "strip", "keep")]
    run(*sources)
    ends = {r["source"]: r["text"].split(": ")[1] for r in rows() if ": " in r["text"]}
    assert ends == {
        "auto": "an Option<S> and a bold word.",
        "strip": "an Option and a bold word.",
        "keep": "an Option<S> and a <b>bold</b> word.",
    }


def test_deduplication_can_be_turned_off(corpus):
    d = run(MINE, exact_dedup=False, near_dedup="ignore")["documents"]["dropped"]
    assert d["exact_duplicate"] == d["near_duplicate"] == 0
    assert len({r["doc_id"] for r in rows()}) == len(rows())  # equal texts have names of their own
    rejected_before = len(rejected())
    d = run(MINE, near_dedup="ignore")["documents"]["dropped"]
    assert d["exact_duplicate"] == 10 and len(rejected()) == rejected_before + 10
    first = next(r for r in rejected() if r["reason"] == "exact_duplicate")
    assert first["duplicate_of"] in {r["doc_id"] for r in rows()}


def test_max_documents_counts_each_source(project, story, write_jsonl):
    for n in "ab":
        write_jsonl(project / "corpus" / n / "x.jsonl", [story(f"{n}{i}") for i in range(90)])
        write_jsonl(project / "corpus" / n / "y.jsonl", [story(f"{n}{i}") for i in range(90, 180)])
    report = run(*({"name": n, "url": f"file:corpus/{n}/*.jsonl"} for n in "ab"), max_documents=100)
    assert [report["per_source"][n]["in"] for n in "ab"] == [100, 100]


def test_licence_and_attribution_reach_report_and_card(corpus):
    report = run(MINE)
    (source,) = report["sources"]
    assert (source["license"], source["attribution"], source["files"]) == ("CC0-1.0", "me", 2) and len(
        source["sha256"]
    ) == 64
    card = (REPORTS / "data_card.md").read_text(encoding="utf-8")
    for part in (
        "CC0-1.0",
        "attribution: me",
        source["sha256"],
        "| dropped: near_duplicate | 20 | 20 |",
        "| documents read | 283 | 283 |",
    ):
        assert part in card


# The files.


def table(**changes):
    text = "some text"
    row = {"doc_id": doc_id(text.encode()), "text": text, "source": "s", "lang": "en", "n_bytes": len(text)} | changes
    return pa.Table.from_pylist([row], schema=pa.schema([f for f in COLUMNS if f.name in row]))


def test_schema_accepts_what_is_right_and_names_what_is_not():
    check_documents(table(), "x")
    wrong = {"doc_id": "xyz", "text": "", "source": "Not A Name", "lang": "", "n_bytes": 8}
    for column, value in wrong.items():
        with pytest.raises(DataError, match=column):
            check_documents(table(**{column: value}), "part")
    for bad in (
        table().drop_columns(["lang"]),
        table().append_column("more", [[1]]),
        table().select(["text", "doc_id", "source", "lang", "n_bytes"]),
    ):
        with pytest.raises(DataError):
            check_documents(bad, "part")


ODD = {
    "doc_id": ["0" * 16, "0" * 16 + "\n", "0" * 15, "\uff10" * 16, "A" * 16, None],
    "text": ["a", "é", "", None],
    "source": ["s", "s.9_-", "s\n", "-s", "", None],
    "lang": ["en", "", None],
    "n_bytes": [1, 2, 0, -1, None],
}


def test_what_is_accepted_without_pandera_is_what_pandera_accepts():
    """Every combination of the odd values; a table of two equal rows, whose ids are not unique; and no rows."""
    accepted = 0
    for values in itertools.product(*ODD.values()):
        some = table(**dict(zip(ODD, values, strict=True)))
        if schema._certainly_clean(some):
            schema.clean_documents().validate(some)
            assert not schema._certainly_clean(pa.concat_tables([some, some]))
            accepted += 1
    assert accepted == 4  # two texts with their sizes, two sources
    assert schema._certainly_clean(table()[:0])


def test_clean_documents_are_checked_without_the_import_of_pandera():
    code = """
import sys, pyarrow as pa
from foundry.data.schema import COLUMNS, check_documents
row = {"doc_id": "0" * 16, "text": "a", "source": "s", "lang": "en", "n_bytes": 1}
check_documents(pa.Table.from_pylist([row], schema=COLUMNS), "x")
print("pandera" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_failed_check_names_the_rows_that_fail_it():
    good = [table(doc_id=doc_id(text.encode()), text=text, n_bytes=len(text)) for text in ("a", "bb", "ccc", "a")]
    first = pa.concat_tables(good[:3])
    check_documents(first, "part", 10)
    wrong = {
        r"doc_id: .* \(rows 10, 13\)": pa.concat_tables(good),
        r"n_bytes is not the length of text in UTF-8 bytes \(rows 11\)": first.set_column(4, "n_bytes", [[1, 3, 3]]),
        r"lang: .* \(rows 10, 11, 12, 13, 14 and 4 more\)": pa.concat_tables(
            [table(doc_id=f"{i:016x}", lang="") for i in range(9)]
        ),
    }
    buffers = first["text"].combine_chunks().buffers()
    not_utf8 = pa.StringArray.from_buffers(3, buffers[1], pa.py_buffer(b"a\xff\xfeccc"))
    wrong[r"text is not valid UTF-8 \(rows 11\)"] = first.set_column(1, "text", not_utf8)
    for message, bad in wrong.items():
        with pytest.raises(DataError, match=f"part does not contain clean documents: .*{message}"):
            check_documents(bad, "part", 10)


def test_parts_and_row_groups_have_fixed_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "GROUP_ROWS", 10)
    monkeypatch.setattr(schema, "PART_BYTES", 25 * 100)
    with PartWriter(tmp_path / "train") as writer:
        for i in range(95):
            data = f"{i:0100d}".encode()
            writer.add(doc_id(data), data, "s", "en")
    parts = sorted((tmp_path / "train").iterdir())
    assert [p.name for p in parts] == [f"part-{i:05d}.parquet" for i in range(4)]
    assert [
        [pq.ParquetFile(p).metadata.row_group(g).num_rows for g in range(pq.ParquetFile(p).num_row_groups)]
        for p in parts
    ] == [
        [10, 10, 10],
        [10, 10, 10],
        [10, 10, 10],
        [5],
    ]
    assert [int(t) for p in parts for t in pq.read_table(p)["text"].to_pylist()] == list(range(95))


# The stages, as processes.


def stage(name, project, **env):
    code = (
        f"import json, sys, stages.{name} as s; s.main(); print(json.dumps([m for m in sys.modules if '.' not in m]))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FOUNDRY_PROGRESS": "0", **env}
    return subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True)


def test_stages_run_as_processes_and_import_nothing_heavy(corpus):
    (corpus / "params.yaml").write_text(yaml.safe_dump({"download": {"sources": [MINE]}}))
    done = stage("download", corpus)
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not modules & {
        "torch",
        "mlflow",
        "prefect",
        "transformers",
        "pandas",
        "pandera",
        "pyarrow",
        "ftfy",
        "rensa",
        "ray",
        "huggingface_hub",
        "requests",
    }
    done = stage("clean", corpus)
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout.splitlines()[-1])) & {
        "torch",
        "mlflow",
        "prefect",
        "transformers",
        "huggingface_hub",
        "requests",
    }
    first = digests()
    assert stage("clean", corpus, PYTHONHASHSEED="7").returncode == 0
    assert digests() == first
    assert sorted(p.name for p in (corpus / "data").iterdir()) == ["clean", "fields", "raw"]


def test_a_mistake_of_the_user_fails_without_a_traceback(corpus):
    (corpus / "params.yaml").write_text(
        yaml.safe_dump({"download": {"sources": [{**MINE, "url": "file:corpus/texts/*.txt"}]}})
    )
    done = stage("download", corpus)
    assert done.returncode == 1 and "error in stage download" in done.stderr and "Traceback" not in done.stderr
    assert str(corpus / "corpus/texts/*.txt") in done.stderr
    done = stage("clean", corpus)
    assert done.returncode == 1 and "Traceback" not in done.stderr
