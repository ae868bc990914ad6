"""01 · Basic training: from a text file to a model, stopped half-way and resumed with the same bits.

    python examples/01_basic_training.py            # about 65 s of one core
    python examples/01_basic_training.py --quick    # a few seconds: fewer steps, the same assertions

The text is this project's own documentation, so nothing is downloaded. Everything happens in a temporary folder.

Expected output (the numbers change with the documentation and, in the last digits, with the processor):

    before: loss 6.945, ln V = 6.931
    step   24: 2.938 bits per byte
    step   48: 2.541 bits per byte
    step   72: 2.362 bits per byte
    step   96: 2.300 bits per byte
    step  120: 2.263 bits per byte
    uninterrupted 5291b203362d694c, resumed 5291b203362d694c: the same bits
    greedy: The model'.md) · [E(") · [E(") · [E(") · [E(") · [E(") · [Eew_tokens'

What to notice:

- Before the first step every token is equally likely, so the loss is ln V (V: size of the vocabulary). A first loss far
  from that means a mistake in the initialisation or in the targets.
- Bits per byte compare models with different tokenizers; the loss per token does not.
- A run is identified by what decides its result. Whoever starts the same run again resumes it, and the bits of the
  result do not depend on the interruption. (The same machine and the same `runtime`: another one rounds differently.)
"""

import argparse
import contextlib
import math
import os
import signal
import tempfile
from pathlib import Path

from foundry import DataLoader, Generator, ModelConfig, TrainConfig, Trainer
from foundry.config import Runtime
from foundry.models.files import weights_sha256
from foundry.utils.events import Callback
from foundry.utils.process import Stopped

DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
RUNTIME = Runtime(device="cpu", precision="float32", compile="never")  # the same numbers on every processor, nearly


class StopsAt(Callback):
    """Sends this process the signal that a scheduler sends before it takes the machine away."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, event) -> None:
        if event.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def main(quick: bool) -> None:
    # One text file; a line <|endoftext|> ends a document. The loader trains a tokenizer on it and keeps both beside it.
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8") for name in PAGES[: 4 if quick else None]]
    Path("pages.txt").write_text("\n<|endoftext|>\n".join(pages), encoding="utf-8")
    rows, context, dim, layers, steps = (8, 64, 64, 2, 20) if quick else (16, 128, 128, 4, 120)
    loader = DataLoader(file_path="pages.txt", batch_size=rows, block_size=context, vocab_size=1024)
    tokenizer = loader.tokenizer
    model = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=dim,
        n_layers=layers,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=dim * 11 // 4,
        max_seq_len=context,
    )
    recipe = TrainConfig(
        max_iters=steps, batch_size=rows, eval_interval=steps // 5, warmup_steps=steps // 10, eval_tokens=4096
    )

    whole = Trainer(model, recipe, loader, runtime=RUNTIME, state=Path("whole"))
    before = whole.evaluate()
    print(f"before: loss {before['val_loss']:.3f}, ln V = {math.log(model.vocab_size):.3f}")
    assert abs(before["val_loss"] - math.log(model.vocab_size)) < 0.1
    result = whole.fit()
    for row in result.validations:
        print(f"step {row['step']:4}: {row['val_bits_per_byte']:.3f} bits per byte")
    after = whole.evaluate()
    assert after["val_loss"] < before["val_loss"] - (0.5 if quick else 2)

    # The same run in another folder, stopped half-way, and then simply started again.
    with contextlib.suppress(Stopped):
        Trainer(model, recipe, loader, runtime=RUNTIME, state=Path("cut"), callbacks=[StopsAt(steps // 2)]).fit()
        raise AssertionError("the run was not stopped")
    resumed = Trainer(model, recipe, loader, runtime=RUNTIME, state=Path("cut"))
    assert resumed.session().state.step == steps // 2
    hashes = weights_sha256(result.model), weights_sha256(resumed.fit().model)
    print(f"uninterrupted {hashes[0][:16]}, resumed {hashes[1][:16]}: the same bits")
    assert hashes[0] == hashes[1]

    text = Generator(result.model, tokenizer, "cpu").generate_text("The model", max_new_tokens=40, temperature=0.0)
    print(f"greedy: The model{text!r}")
    assert text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
