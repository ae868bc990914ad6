"""06 · Serving: a server, the official client of the OpenAI API, and a stream.

    python examples/06_serving.py            # about 30 s of one core
    python examples/06_serving.py --quick    # a smaller model; the same assertions

A small model is trained on this project's documentation and saved; `foundry serve` serves the folder on a free port of
the loopback, and the package `openai` (`make setup extras=dev`) talks to it. Everything happens in a temporary folder,
and the server is stopped at the end.

Expected output (the texts change with the documentation and the processor):

    model continues 'The model' with seed 0: '; compack-aialolyaml (these for [A,ke in stages it dif one every one f …
    twelve requests at once: the texts of the package, character for character
    streamed in 29 parts
    written by the weights 73208c2c09f96e5a, seed 2627174662
    refused: top_p must be a number in (0, 1] (1 = off), got 1.5
    the server stopped when it was asked to

What to notice:

- Client code for the OpenAI API needs one changed line: `base_url`.
- The server gives the same text as the package for the same seed, whatever else it does at the time: twelve requests at
  once change no character.
- A stream has the same characters as the whole answer, and every answer names the weights that produced it.
- A mistake of a client is an error with a name; the server continues.
"""

import argparse
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

from foundry import DataLoader, Generator, ModelConfig, TrainConfig, Trainer
from foundry.config import Runtime
from foundry.models import save_model

DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
RUNTIME = Runtime(device="cpu", precision="float32", compile="never")
PROMPT = "The model"


def trained(quick: bool) -> Generator:
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8") for name in PAGES[: 4 if quick else None]]
    Path("pages.txt").write_text("\n<|endoftext|>\n".join(pages), encoding="utf-8")
    rows, dim, layers, steps = (8, 48, 2, 15) if quick else (16, 128, 3, 150)
    loader = DataLoader(file_path="pages.txt", batch_size=rows, block_size=96, vocab_size=1024)
    shape = dict(n_heads=4, n_kv_heads=2, ffn_dim=dim * 3, max_seq_len=96)
    config = ModelConfig(vocab_size=loader.tokenizer.vocab_size, dim=dim, n_layers=layers, **shape)
    recipe = TrainConfig(max_iters=steps, eval_interval=steps, warmup_steps=steps // 10, eval_tokens=2048)
    result = Trainer(config, recipe, loader, runtime=RUNTIME).fit()
    save_model("model", result.model, result.facts)
    shutil.copytree(
        loader.shards.folder.parent / "tokenizer", "tokenizer"
    )  # a trained model has its tokenizer beside it
    return Generator(result.model, loader.tokenizer, "cpu")


@contextlib.contextmanager
def served(folder: str) -> Iterator[str]:
    """`foundry serve FOLDER` as a process of its own; gives the address from its first lines."""
    command = [sys.executable, "-m", "foundry.cli", "serve", folder, "--port", "0", "--weights", "float32"]
    log = Path("server.txt")
    with log.open("w", encoding="utf-8") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"page +(http://\S+)/", log.read_text(encoding="utf-8"))):
            assert server.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield found[1]
    finally:
        server.send_signal(signal.SIGTERM)  # answers that are being written are finished first
        assert server.wait(60) in (0, 128 + signal.SIGTERM), log.read_text(encoding="utf-8")
    print("the server stopped when it was asked to")


def main(quick: bool) -> None:
    generator = trained(quick)
    here = {seed: generator.generate_text(PROMPT, max_new_tokens=30, seed=seed) for seed in range(12)}
    with served("model") as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id

        def complete(seed: int) -> str:
            done = client.completions.create(model=model, prompt=PROMPT, max_tokens=30, seed=seed)
            return done.choices[0].text

        print(f"{model} continues {PROMPT!r} with seed 0: {complete(0)!r}")
        with ThreadPoolExecutor(12) as pool:
            answers = dict(zip(here, pool.map(complete, here), strict=True))
        assert answers == here, "a text depends on the seed, not on the other requests"
        print("twelve requests at once: the texts of the package, character for character")

        stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=30, seed=1, stream=True)
        parts = [chunk.choices[0].text for chunk in stream if chunk.choices]
        print(f"streamed in {len(parts)} parts")
        assert "".join(parts) == here[1] and len(parts) > 2

        raw = client.completions.with_raw_response.create(model=model, prompt=PROMPT, max_tokens=1)
        print(f"written by the weights {raw.headers['X-Foundry-Model'][:16]}, seed {raw.headers['X-Foundry-Seed']}")
        assert len(raw.headers["X-Foundry-Model"]) == 64

        try:
            client.completions.create(model=model, prompt=PROMPT, top_p=1.5)
            raise AssertionError("the server accepted top_p=1.5")
        except openai.BadRequestError as e:
            print(f"refused: {e.body['message']}")
            assert "top_p" in e.body["message"]
        assert complete(2) == here[2], "the server continues"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
