"""`lineage.json` of an export: the chain from its weights back to the raw bytes. A function of what the stages left: no clock, path or commit.

Imports no torch and reads the project's files alone, so that `foundry trace` needs nothing but the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.utils.files import read_json, sha256_file, sha256_json

NAME = "lineage.json"


def lineage(root: str | Path, facts: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The chain of the project at `root`.

    Args:
        facts: `config.json` of the trained model.
        parameters: identity parameters: all of `params.yaml` but `runtime`.

    Returns:
        model, shards, tokenizer, clean, raw (each with its hashes), raw_sha256, parameters.

    Raises:
        DataError: if the manifest of the raw files or the index of the shards is missing.
    """
    root = Path(root)
    raw = read_json(
        root / "data/raw/manifest.json", "the manifest of the raw files; run `dvc repro download`", DataError
    )
    index = read_json(root / "data/shards/index.json", "the index of the shards; run `dvc repro shard`", DataError)
    sources = [
        {
            **{k: s[k] for k in ("name", "url", "license", "attribution", "lang", "files")},
            "sha256": sha256_json(s["files"]),
        }
        for s in raw["sources"]
    ]
    clean = {
        p.relative_to(root / "data/clean").as_posix(): sha256_file(p)
        for p in sorted((root / "data/clean").glob("*/part-*.parquet"))
    }
    return {
        "model": {k: facts[k] for k in ("weights_sha256", "fingerprint", "steps", "tokens")},
        "shards": {
            "index_sha256": facts["index_sha256"],
            "files": {
                f"{split}/{s['file']}": s["sha256"] for split, part in index["splits"].items() for s in part["shards"]
            },
        },
        "tokenizer": {"sha256": facts["tokenizer_sha256"]},
        "clean": {"sha256": sha256_json(clean), "files": clean},
        "raw": sources,
        "raw_sha256": sha256_json([s["sha256"] for s in sources]),
        "parameters": parameters,
    }
