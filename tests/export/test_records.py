"""`proof.json` has one schema: what is read is written again byte for byte, and what does not follow it is refused."""

import json

import pytest
from example_records import example_proof

from foundry.config import ExportError
from foundry.export.manifest import hash_files, read_record, verify_export, write_record
from foundry.export.proof import BitsPerByte, ExportRecord, FormatCosts
from foundry.utils.files import sha256_json

COSTS = FormatCosts(documents=1, tokens=2, bytes=3, float=BitsPerByte(bits_per_byte=1.5), formats={})
KEYS = ["model_name", "fingerprint", "index_sha256", "tokenizer_sha256", "weights_sha256", "proof"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights").write_bytes(b"weights")
    return tmp_path


def record(folder, **fields):
    hashes = {"index_sha256": "1" * 64, "tokenizer_sha256": "2" * 64, "weights_sha256": "3" * 64}
    files = hash_files(folder)
    return ExportRecord(model_name="lm", fingerprint="f" * 16, **hashes, proof=example_proof(), files=files, **fields)


@pytest.mark.parametrize(("costs", "keys"), [(None, []), (COSTS, ["quantised"])])
def test_a_record_is_read_and_written_again_byte_for_byte(folder, costs, keys):
    write_record(folder, record(folder, quantised=costs))
    first = (folder / "proof.json").read_bytes()
    assert list(json.loads(first)) == [*KEYS, *keys, "files", "sha256"]
    assert verify_export(folder) == record(folder, quantised=costs)
    write_record(folder, read_record(folder))
    assert (folder / "proof.json").read_bytes() == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("fingerprint"), "fingerprint: Field required"),
        (
            lambda r: r["proof"]["weights"].update(tensors="29"),
            "proof.weights.tensors: Input should be a valid integer",
        ),
        (lambda r: r["proof"].update(another=1), "proof.another: Extra inputs are not permitted"),
        (lambda r: r["files"].update(weights=None), "files.weights: Input should be a valid string"),
    ],
)
def test_a_record_of_another_version_is_refused_with_the_key_that_differs(folder, change, message):
    write_record(folder, record(folder))
    content = json.loads((folder / "proof.json").read_text())
    del content["sha256"]
    change(content)
    (folder / "proof.json").write_text(json.dumps({**content, "sha256": sha256_json(content)}))
    with pytest.raises(ExportError, match=rf"is not the proof of an export of this version of Foundry: {message}"):
        read_record(folder)
