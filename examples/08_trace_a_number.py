"""08 · Trace a number: from bits per byte in a report down to the bytes that it came from.

    python examples/08_trace_a_number.py            # about 15 s of one core
    python examples/08_trace_a_number.py --quick    # fewer steps; the same assertions

A toy project is built in a temporary folder by the stages of `make repro`, called one by one. Then its main number is
computed again by hand, step by step backwards, until nothing is left but a file of the corpus and its hash.

Expected output (the numbers change with the documentation, whose pages are the text, and the processor):

    reported 2.8785 bits per byte; 12 losses by hand: 2.878463
    document 11c15ea7c1e223b7: 6262.322 nats in the table, 6262.322 when it is scored again
    it is record 20 of pages/pages.jsonl, sha256 968582814f304d11…
    step 3 reads batch 2: 8 rows of 96 tokens
    row 0: pages d76de84500879da6 (shard-00000.arrow), its tokens 356 to 452: '2024, arXiv:2407.01082 |\\n| `typica
    row 1: pages 5acf9c7520f75e60 (shard-00000.arrow), its tokens 228 to 324: ' rows and do not see each other. A
    artifacts/export: every file that is here is what was recorded
    error: the chain is broken:
      - clean: data/clean/test/part-00000.parquet: changed

What to notice:

- Bits per byte = nats / ln 2 / bytes of the raw text. Tokens do not occur in it, so that it compares tokenizers, too.
- Every link of the chain is a hash of bytes, not a date and not a file name: `foundry trace` prints it, and
  `foundry verify` hashes every file of it again.
- A batch is a function of the shards, the seed and the number of the step: `foundry inspect` shows what a step read,
  long after the training.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import math
import tempfile
from pathlib import Path

import numpy as np

from foundry import DataLoader, Tokenizer, cli, load_config
from foundry.config.load import yaml_text
from foundry.data.tokens.shards import read_clean
from foundry.evaluation import read_losses, score
from foundry.models import load_model
from foundry.utils.files import read_json
from foundry.utils.log import get_logger
from stages import clean, download, evaluate, export, shard, train, train_tokenizer

DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
PARAMS = {
    "download": {"sources": [{"name": "pages", "url": "file:corpus/*.jsonl", "lang": "en", "license": "MIT"}]},
    "clean": {"val_fraction": 0.1, "test_fraction": 0.2},
    "tokenizer": {"vocab_size": 768},
    "model": {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 160, "max_seq_len": 96},
    "train": {"tokens_per_step": 768, "warmup_steps": 2, "eval_tokens": 2048},
    "evaluate": {"tasks": [], "baselines": False, "max_new_tokens": 16, "prompts": ["The model"]},
    "export": {"model_name": "example", "gguf_types": ["f32"]},
    "runtime": {"device": "cpu", "precision": "float32", "compile": "never", "workers": 1, "tracking": False},
}


def foundry(*arguments: str) -> str:
    """A command in this process: what it prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        cli.main(list(arguments))
    return text.getvalue()


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def build(quick: bool) -> None:
    Path("corpus").mkdir()
    with open("corpus/pages.jsonl", "w", encoding="utf-8") as corpus:
        for name in PAGES[: 5 if quick else None]:
            for section in (DOCS / f"{name}.md").read_text(encoding="utf-8").split("\n## "):
                corpus.write(json.dumps({"text": section}) + "\n")
    steps = 10 if quick else 150
    train_section = PARAMS["train"] | {"steps": steps, "eval_interval": steps}
    Path("params.yaml").write_text(yaml_text(PARAMS | {"train": train_section}), encoding="utf-8")
    config, log = load_config("params.yaml"), get_logger()
    log.setLevel(logging.WARNING)
    for stage in (download, clean, train_tokenizer, shard, train, evaluate, export):
        stage.work(config, log)


def main(quick: bool) -> None:
    build(quick)
    chain = json.loads(foundry("trace", "--json"))

    # 1. The number is in a report, and the chain of the export has the hash of that report.
    number = read_json(Path("reports/evaluate.json"), "the evaluation")["test"]["bits_per_byte"]["value"]
    assert chain["reports"]["files"]["evaluate.json"] == sha256("reports/evaluate.json")

    # 2. It follows from the losses of the test documents.
    losses = "artifacts/evaluation/documents.parquet"
    assert chain["evaluation"]["files"]["documents.parquet"] == sha256(losses)
    table = read_losses(losses).to_pylist()
    by_hand = sum(r["nats"] for r in table) / math.log(2) / sum(r["n_bytes"] for r in table)
    print(f"reported {number} bits per byte; {len(table)} losses by hand: {by_hand:.6f}")
    assert math.isclose(number, by_hand, rel_tol=1e-4)

    # 3. A loss follows from the model, the tokenizer and the text of the document.
    assert chain["model"]["weights_sha256"] == sha256("artifacts/model/model.safetensors")
    assert chain["tokenizer"]["sha256"] == sha256("artifacts/tokenizer/tokenizer.model")
    row = max(table, key=lambda r: r["n_bytes"])
    clean_rows = (r for part in read_clean("data/clean/test", ["doc_id", "text"]) for r in part)
    (text,) = (r["text"] for r in clean_rows if r["doc_id"] == row["doc_id"])
    assert len(text.encode()) == row["n_bytes"], "bytes are counted on the raw text"
    model, tokenizer = load_model("artifacts/model"), Tokenizer("artifacts/tokenizer")
    ids = np.array(tokenizer.encode(text, bos=True, eos=True))
    nats = score(model, [ids], model.cfg.max_seq_len).nats.item()
    print(f"document {row['doc_id']}: {row['nats']:.3f} nats in the table, {nats:.3f} when it is scored again")
    assert math.isclose(nats, row["nats"], rel_tol=1e-4)

    # 4. The text is a record of a raw file, whose hash ends the chain.
    (file,) = chain["raw"][0]["files"]
    records = [json.loads(line)["text"] for line in Path("data/raw", file["path"]).read_text("utf-8").splitlines()]
    (record,) = (n for n, r in enumerate(records) if r.split("\n")[0].strip() == text.split("\n")[0].strip())
    print(f"it is record {record} of {file['path']}, sha256 {file['sha256'][:16]}…")
    assert file["sha256"] == sha256("corpus/pages.jsonl")

    # 5. In the other direction: what did the model read in step 3?
    shown = foundry("inspect", "--step", "3").splitlines()
    print("\n".join(line[:110] for line in shown[:3]))
    part = next(DataLoader("data/shards", 8, model.cfg.max_seq_len, seed=1).parts(2))
    assert part.doc_id in shown[1]

    # 6. One byte of the test text changes: the chain does not hold any more, and the file is named.
    print(foundry("verify").strip().splitlines()[-1])
    (victim,) = Path("data/clean/test").glob("*.parquet")
    whole = victim.read_bytes()
    victim.chmod(0o644)
    victim.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            foundry("verify")
        raise AssertionError("the changed byte was not noticed")
    except SystemExit as e:
        assert e.code == 1 and f"{victim}: changed" in errors.getvalue()
    print("\n".join(errors.getvalue().splitlines()[:2]))
    victim.write_bytes(whole)
    foundry("verify")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
