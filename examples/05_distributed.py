"""05 · Several processes: two that train together follow the loss curve of one.

    python examples/05_distributed.py            # about 30 s of one core
    python examples/05_distributed.py --quick    # fewer steps, and without FSDP

The same training runs three times on the text of this project's documentation: in one process, in two that hold a
complete model each (DDP), and in two that hold a half of it each (FSDP). The processes are started by torchrun and talk
over gloo, as they would over NCCL on GPUs. Everything happens in a temporary folder.

Expected output (the losses change with the documentation and the processor; their differences stay this small):

    one   1 process: loss 6.41072 … 4.95657
    ddp   2 processes: loss 6.41072 … 4.95657
          the losses of all 60 steps differ by 0e+00 at most, as a share
    fsdp  2 processes: loss 6.41072 … 4.95657
          the losses of all 60 steps differ by 0e+00 at most, as a share

What to notice:

- The global batch is the same: `batch_size` sequences per step, however many processes share them. So are the learning
  rates and the number of steps: adding a process changes the time, not the recipe.
- A loss is a sum over valid tokens divided by their global number. A mean of each process's mean would be another
  number as soon as the processes have different numbers of valid tokens.
- float32 addition is not associative: the gradients are added in another order, so the curves agree to rounding and not
  bit for bit. Twice the same number of processes gives the same bits.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from foundry import DataLoader, ModelConfig, TrainConfig, Trainer
from foundry.config import Runtime
from foundry.models.files import weights_sha256
from foundry.utils.distributed import world

DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
ROWS, CONTEXT = 8, 64


def train(shards: str, out: str, parallel: str, steps: int) -> None:
    """What each process does; with torchrun's variables in the environment it is one of several."""
    runtime = Runtime(device="cpu", precision="float32", compile="never", threads=1, parallel=parallel)
    with world(runtime) as here:  # this process among the others; gloo on the CPU, NCCL on GPUs
        vocabulary = DataLoader(shards, ROWS, CONTEXT).shards.index.vocab_size
        shape = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=176, max_seq_len=CONTEXT)
        model = ModelConfig(vocab_size=vocabulary, **shape)
        recipe = TrainConfig(
            max_iters=steps,
            batch_size=ROWS,
            packing="best_fit",  # complete documents and padding: the processes have different numbers of valid tokens
            warmup_steps=2,
            log_interval=1,
            eval_interval=steps,
            eval_tokens=4096,
        )
        trainer = Trainer.from_shards(model, recipe, shards, runtime=runtime, world=here, state=Path(out) / "state")
        result = trainer.fit()
        if here.main:
            found = {"curve": [row["loss"] for row in result.curve], "weights": weights_sha256(result.model)}
            Path(out, "result.json").write_text(json.dumps(found), encoding="utf-8")


def run(name: str, processes: int, shards: Path, parallel: str, steps: int) -> dict:
    out = Path(name)
    out.mkdir()
    if processes == 1:
        train(str(shards), name, parallel, steps)
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [__file__, "--work", str(shards), name, parallel, str(steps)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun would warn that it sets it
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    first, last = found["curve"][0], found["curve"][-1]
    print(f"{name:5} {processes} {'processes' if processes > 1 else 'process'}: loss {first:.5f} … {last:.5f}")
    return found


def main(quick: bool) -> None:
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8") for name in PAGES[: 4 if quick else None]]
    documents = [part for page in pages for part in page.split("\n\n")]  # paragraphs: short, so that rows have padding
    Path("pages.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    loader = DataLoader(file_path="pages.txt", batch_size=ROWS, block_size=CONTEXT, vocab_size=600)
    shards, steps = loader.shards.folder, 10 if quick else 60

    one = run("one", 1, shards, "ddp", steps)
    for parallel in ("ddp",) if quick else ("ddp", "fsdp"):
        several = run(parallel, 2, shards, parallel, steps)
        assert len(several["curve"]) == len(one["curve"]) == steps
        worst = max(abs(a - b) / a for a, b in zip(one["curve"], several["curve"], strict=True))
        print(f"      the losses of all {steps} steps differ by {worst:.0e} at most, as a share")
        assert worst < 1e-3
    assert one["curve"][-1] < one["curve"][0] - 0.3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)  # how this file starts itself
    arguments = parser.parse_args()
    if arguments.work:
        train(*arguments.work[:3], int(arguments.work[3]))
    else:
        with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
            main(arguments.quick)
