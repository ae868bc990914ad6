"""Fields that a source keeps beside the text: the side table has them for exactly the documents that are kept, each in
the split of its document, cleaned as the text is; and they are in the accounts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleaning import FIELDS, MINE, OUT, refused, rejected, rows, run

from foundry.config import ConfigError, DataError
from foundry.data.fields import read_fields
from foundry.data.splits import SPLITS


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()


def _text(i):
    return f"Entry {i}. " + " ".join(f"word{(i * 37 + k * k) % 5003}x{k}" for k in range(40))


def _records(count=200):
    """Records whose description is missing in every tenth; the last two are too short and a copy."""
    made = [
        {"text": _text(i), "about": f"the  {i}th\u200b thing", "facts": {"n": i, "list": ["a&amp;b", 1]}}
        for i in range(count)
    ]
    for record in made[::10]:
        del record["about"]
    return [*made, {"text": "short", "about": "dropped"}, {**made[1], "about": "a copy"}]


def _write(records, name="a.jsonl"):
    with open(f"corpus/{name}", "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in records)


def _tables():
    return {split: list(read_fields(FIELDS, split)) for split in SPLITS}


def test_fields_follow_their_documents_into_the_splits_and_are_cleaned_and_counted():
    _write(_records())
    report = run({**MINE, "fields": ["about", "facts.list", "facts"]})
    tables = _tables()
    for split in SPLITS:
        kept = {r["doc_id"]: r["text"] for r in rows(split)}
        assert [x.doc_id for x in tables[split]] == list(kept) and kept
        for item in tables[split]:
            i = int(kept[item.doc_id].split(".")[0].removeprefix("Entry "))
            about = {} if i % 10 == 0 else {"about": f"the {i}th thing"}  # never that of the copy
            assert item.fields == {**about, "facts.list": ["a&b", 1], "facts": {"n": i, "list": ["a&b", 1]}}
            assert item.source == "mine"
    assert {r["reason"] for r in rejected()} == {"too_short", "exact_duplicate"}
    account = report["per_source"]["mine"]
    assert account["fields"] == {"about": 180, "facts.list": 200, "facts": 200} and account["kept"] == 200
    assert account["repaired_fields"]["normalized"] >= 180 and "normalized" not in account["repaired"]


def test_personal_data_is_scrubbed_from_fields_too():
    _write([{"text": _text(i), "about": f"write to someone{i}@example.org"} for i in range(100)])
    report = run({**MINE, "fields": ["about"]})
    assert {x.fields["about"] for t in _tables().values() for x in t} == {"write to [EMAIL]"}
    assert report["per_source"]["mine"]["repaired_fields"]["scrubbed_email"] == 100


def test_texts_and_splits_do_not_depend_on_the_fields():
    _write(_records())
    run(MINE)
    before = {s: (OUT / s / "part-00000.parquet").read_bytes() for s in SPLITS}
    assert _tables() == {s: [] for s in SPLITS}
    run({**MINE, "fields": ["about"]})
    assert {s: (OUT / s / "part-00000.parquet").read_bytes() for s in SPLITS} == before
    assert all(_tables().values())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_its_columns(kind):
    made = [{"text": _text(i), "n": i, "about": f"thing {i}"} for i in range(100)]
    if kind == "csv":
        with open("corpus/a.csv", "w") as f:
            f.write("text,n,about\n" + "".join(f"{r['text']},{r['n']},{r['about']}\n" for r in made))
    else:
        pq.write_table(pa.Table.from_pylist(made), "corpus/a.parquet")
    run({**MINE, "url": f"file:corpus/a.{kind}", "fields": ["n", "about"]})
    number = str if kind == "csv" else int
    found = sorted((x.fields for t in _tables().values() for x in t), key=lambda f: int(f["n"]))
    assert found == [{"n": number(i), "about": f"thing {i}"} for i in range(100)]


def test_a_field_that_no_record_has_is_an_error_that_names_it():
    _write(_records())
    refused("no record of mine has the field 'abuot'", {**MINE, "fields": ["about", "abuot"]})


@pytest.mark.parametrize("fields", [["a", "a"], [" "]])
def test_names_of_fields_are_unique_and_not_empty(fields):
    with pytest.raises(ConfigError, match="each must be the name of a field, once"):
        run({**MINE, "fields": fields})


def test_a_table_that_is_missing_or_damaged_says_which_stage_writes_it():
    with pytest.raises(DataError, match="is missing; run the clean stage"):
        list(read_fields(FIELDS, "train"))
    _write(_records())
    run({**MINE, "fields": ["about"]})
    path = FIELDS / "train.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="is not readable"):
        list(read_fields(FIELDS, "train"))
