"""07 · Compare and promote: is the second model better, and who decides?

    python examples/07_compare_and_promote.py            # about 30 s of one core
    python examples/07_compare_and_promote.py --quick    # fewer steps; the same assertions

A toy project is built in a temporary folder, with a registry of its own (MLflow in a SQLite file): one corpus, and two
trainings of one recipe, the second of which is longer. The stages are those of `make repro`, called one by one.

Expected output (the numbers change with the documentation, whose pages are the text, and the processor):

    version 1 of example: was registered before; it is the champion
    3.2093 -> 2.6631 bits per byte on 12 documents: -0.5461 (95 % -0.5912 to -0.5034), better
    the interval of the second model by itself: 2.5091 to 2.8784
    1 is not promoted: worse: 3.2093 against 2.6631 bits per byte, difference +0.5461 (95 % +0.5034 to +0.5912), bet …
    champion is version 1 again (before: version 2)
    2 is not promoted: it was rolled back (by NAME on DATE: its answers are longer); `foundry promote 2 --force --wh …
    2 is champion: forced by NAME: shorter answers are set elsewhere now (champion before: 1)

What to notice:

- Two models are compared on the same documents, pair by pair. Most of the spread between documents is common to both
  and cancels, so that a difference is seen which the two separate intervals would hide.
- The gate promotes only what is better beyond its interval: it refuses to return to the worse model.
- A person may decide against the gate, with a reason. What was rolled back does not come back by itself.
"""

import argparse
import contextlib
import io
import json
import logging
import tempfile
from pathlib import Path

from foundry import cli, load_config
from foundry.config.load import yaml_text
from foundry.utils.files import read_json
from foundry.utils.log import get_logger
from stages import clean, download, evaluate, export, shard, train, train_tokenizer

DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
FIRST = Path("first.parquet")  # the losses of the first model on each test document
PARAMS = {
    "download": {"sources": [{"name": "pages", "url": "file:corpus/*.jsonl", "lang": "en", "license": "MIT"}]},
    "clean": {"val_fraction": 0.1, "test_fraction": 0.2},
    "tokenizer": {"vocab_size": 768},
    "model": {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 160, "max_seq_len": 96},
    "train": {"tokens_per_step": 768, "warmup_steps": 2, "eval_tokens": 2048},
    "evaluate": {"tasks": [], "baselines": False, "max_new_tokens": 16, "prompts": ["The model"]},
    "export": {"model_name": "example", "gguf_types": ["f32"]},
    "runtime": {"device": "cpu", "precision": "float32", "compile": "never", "workers": 1},
}


def foundry(*arguments: str) -> str:
    """The last line of a command's output; the command runs in this process."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        cli.main(list(arguments))
    return text.getvalue().strip().splitlines()[-1]


def build(steps: int, *stages) -> None:
    """Writes the parameters and runs stages."""
    train_section = PARAMS["train"] | {"steps": steps, "eval_interval": steps}
    Path("params.yaml").write_text(yaml_text(PARAMS | {"train": train_section}), encoding="utf-8")
    config, log = load_config("params.yaml"), get_logger()
    log.setLevel(logging.WARNING)
    for stage in stages:
        stage.work(config, log)


def main(quick: bool) -> None:
    Path("corpus").mkdir()
    with open("corpus/pages.jsonl", "w", encoding="utf-8") as corpus:
        for name in PAGES[: 5 if quick else None]:
            for section in (DOCS / f"{name}.md").read_text(encoding="utf-8").split("\n## "):
                corpus.write(json.dumps({"text": section}) + "\n")
    steps = 10 if quick else 80
    build(steps, download, clean, train_tokenizer, shard, train, evaluate, export)
    print(foundry("register"))  # stage export has done so already, as it will with the second model
    Path("artifacts/evaluation/documents.parquet").rename(FIRST)

    build(3 * steps, train, evaluate, export)
    compared = json.loads(foundry("compare", str(FIRST), "artifacts/evaluation/documents.parquet", "--json"))
    overall = compared["overall"]
    print(
        f"{overall['bits_a']:.4f} -> {overall['bits_b']:.4f} bits per byte on {overall['documents']} documents: "
        f"{overall['value']:+.4f} (95 % {overall['low']:+.4f} to {overall['high']:+.4f}), {compared['verdict']}"
    )
    assert compared["verdict"] == "better" and overall["high"] < 0
    own = read_json(Path("reports/evaluate.json"), "the evaluation")["test"]["bits_per_byte"]
    print(f"the interval of the second model by itself: {own['low']:.4f} to {own['high']:.4f}")
    assert overall["high"] - overall["low"] < own["high"] - own["low"], "pairs cancel the spread between documents"

    refused = foundry("promote", "1")
    print(refused)
    assert refused.startswith("1 is not promoted: worse")
    back = foundry("rollback", "--why", "its answers are longer")
    print(back)
    assert back == "champion is version 1 again (before: version 2)"
    again = foundry("promote", "2")
    print(again)
    assert again.startswith("2 is not promoted: it was rolled back") and "its answers are longer" in again
    forced = foundry("promote", "2", "--force", "--why", "shorter answers are set elsewhere now")
    print(forced)
    assert forced.startswith("2 is champion")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
