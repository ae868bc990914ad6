"""The clean stage refuses what it cannot do correctly; each error names what was seen and what to set."""

import gzip
import json

import pytest
from cleaning import FIELDS, LOG, MINE, OUT, RAW, REPORTS, refused, run

from foundry.config import DataError, parse_config
from foundry.data.clean.corpus import clean
from foundry.data.fetch.download import download


def test_everything_filtered_out_names_the_rule_and_its_key(project, write_jsonl):
    write_jsonl(project / "corpus/a.jsonl", [f"short {i}" for i in range(30)])
    message = refused("every one of the 30 documents", MINE)
    assert "too_short 30" in message and "clean.min_chars" in message


def test_too_many_dropped_names_the_share(corpus):
    message = refused("clean.max_rejected", MINE, max_rejected=0.1)
    assert "near_duplicate 20" in message and "15.2%" in message


@pytest.mark.parametrize("files", [{"a.jsonl": ""}, {"a.jsonl": "\n\n"}, {"a.jsonl": "", "b.jsonl": ""}])
def test_an_empty_corpus_is_refused(project, files):
    (project / "corpus").mkdir()
    for name, text in files.items():
        (project / "corpus" / name).write_text(text)
    refused("mine contains no document", MINE)


def test_an_empty_text_file_is_refused(project):
    (project / "corpus").mkdir()
    (project / "corpus/a.txt").write_text("")
    refused("mine contains no document .*bytes: 0", {"name": "mine", "url": "file:corpus/*.txt"})


def test_the_error_for_one_long_book_says_how_to_cut_it(project, story):
    (project / "corpus").mkdir()
    (project / "corpus/book.txt").write_text(story(1, 5000))
    source = {"name": "mine", "url": "file:corpus/*.txt"}
    assert "<|endoftext|>" in refused("no document for ", source)
    assert "<|endoftext|>" in refused("too_long 1", source, max_chars=1000)
    (project / "corpus/book.txt").write_text("\n<|endoftext|>\n".join(story(i) for i in range(100)))
    assert run(source)["documents"]["kept"] == 100


def test_too_few_documents_for_three_splits_names_the_empty_ones(project, story, write_jsonl):
    write_jsonl(project / "corpus/a.jsonl", [story(i) for i in range(4)])
    message = refused("no document for val and test", MINE)
    assert "clean.val_fraction" in message


def test_too_many_unreadable_records_show_the_first(project, story):
    (project / "corpus").mkdir()
    lines = [json.dumps({"text": story(i)}) for i in range(90)] + ['{"text": "oops'] * 10
    (project / "corpus/a.jsonl").write_text("\n".join(lines))
    message = refused("10 of 100 records cannot be read", MINE)
    assert "clean.max_bad_fraction" in message and "broken_json" in message and "oops" in message
    assert run(MINE, max_bad_fraction=0.2)["records"]["quarantined"] == 10


def test_a_damaged_file_is_refused_not_shortened(project, story):
    (project / "corpus").mkdir()
    packed = gzip.compress("\n".join(json.dumps({"text": story(i)}) for i in range(200)).encode())
    (project / "corpus/a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    refused("mine/a.jsonl.gz is damaged", {**MINE, "url": "file:corpus/*.gz"})


def test_raw_file_that_changed_after_its_download_is_refused(corpus):
    config = parse_config({"download": {"sources": [MINE]}})
    download(config, RAW, LOG)
    data = bytearray((RAW / "mine/a.jsonl").read_bytes())
    data[100] ^= 1
    (RAW / "mine/a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match="was changed after its download"):
        clean(config.clean, config.runtime, RAW, OUT, FIELDS, REPORTS, LOG)
    (RAW / "mine/a.jsonl").unlink()
    with pytest.raises(DataError, match="is missing"):
        clean(config.clean, config.runtime, RAW, OUT, FIELDS, REPORTS, LOG)
    manifest = json.loads((RAW / "manifest.json").read_text())
    manifest["sources"][0]["files"][0]["path"] = "../outside.jsonl"
    (RAW / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is outside"):
        clean(config.clean, config.runtime, RAW, OUT, FIELDS, REPORTS, LOG)
    assert not OUT.exists()


def test_missing_manifest_says_which_stage_to_run(project):
    with pytest.raises(DataError, match=r"stages\.download"):
        config = parse_config({"download": {"sources": [MINE]}})
        clean(config.clean, config.runtime, RAW, OUT, FIELDS, REPORTS, LOG)
