"""04 · Fine-tuning: a base model learns to answer, by all of its weights and by a LoRA adapter that PEFT loads.

    python examples/04_fine_tuning.py            # about 40 s of one core
    python examples/04_fine_tuning.py --quick    # few steps: that it learns at all, and that the formats agree

A small base model is trained on this project's documentation. Then it is fine-tuned on questions about capitals: each
capital is asked for in three of four wordings, and the test asks in the fourth. It needs the packages of
`make setup extras=dev` (PEFT comes with trl). Everything happens in a temporary folder.

Expected output (the numbers change with the documentation and the processor):

    <s><|im_start|>user<0x0A>Which▁city▁is▁the▁capital▁of▁France?<|im_end|><0x0A><|im_start|>assistant<0x0A>⟦Paris.< …
    full: 721,792 of 721,792 weights trained, loss of the answers 6.542 -> 0.147
    lora: 116,992 of 721,792 weights trained, loss of the answers 6.542 -> 0.291
    base   0 of 12 right; What is the capital of France? '\\n## The rates, and the same\\n'
    full   9 of 12 right; What is the capital of France? 'Paris.'
    lora   9 of 12 right; What is the capital of France? 'Paris.'
    PEFT reads the adapter: its logits differ by 6.7e-06 at most, those of the base by 9.1

What to notice:

- Only the answer and its end are learnt; the question is context. Shown between ⟦ and ⟧.
- The adapter begins as its base, bit for bit, trains a small share of the weights, and merged into the base it is the
  same function. PEFT computes it from the same files.
- The rows of the two chat markers are trained as well: they never occur in pre-training, and without them the model
  could not end an answer.
"""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path

import torch

from foundry import DataLoader, Generator, ModelConfig, Tokenizer, TrainConfig, Trainer
from foundry.chat.example import Example, Turn
from foundry.chat.sft import FineTuning, Folders, Tuned
from foundry.chat.shards import ChatShards, write_chat
from foundry.chat.verifiers import VERIFIER_VERSION
from foundry.config import Runtime
from foundry.config.chat import Lora, Sft
from foundry.export.huggingface import export_huggingface
from foundry.models import load_model, save_model
from foundry.models.adapter import merged
from foundry.models.adapter_files import load_adapted, save_adapter
from foundry.tokenizers.chat import Message
from foundry.utils.distributed import World

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the models below are on this disk
DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
RUNTIME = Runtime(device="cpu", precision="float32", compile="never")
HERE = World(0, 1, torch.device("cpu"))  # one process
CAPITALS = dict(
    France="Paris", Spain="Madrid", Italy="Rome", Japan="Tokyo", China="Beijing", India="Delhi", Egypt="Cairo",
    Kenya="Nairobi", Peru="Lima", Cuba="Havana", Norway="Oslo", Greece="Athens",
)  # fmt: skip
WORDINGS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "{}: what is its capital?",
)


def base_model(quick: bool) -> Path:
    """Pre-trains the base and saves it; gives the folder with its tokenizer and shards."""
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8") for name in PAGES[: 4 if quick else None]]
    Path("pages.txt").write_text("\n<|endoftext|>\n".join(pages), encoding="utf-8")
    rows, dim, layers, steps = (8, 48, 2, 15) if quick else (16, 128, 3, 120)
    loader = DataLoader(file_path="pages.txt", batch_size=rows, block_size=96, vocab_size=1024)
    shape = dict(n_heads=4, n_kv_heads=2, ffn_dim=dim * 3, max_seq_len=96)
    config = ModelConfig(vocab_size=loader.tokenizer.vocab_size, dim=dim, n_layers=layers, **shape)
    recipe = TrainConfig(max_iters=steps, eval_interval=steps, warmup_steps=steps // 10, eval_tokens=2048)
    result = Trainer(config, recipe, loader, runtime=RUNTIME).fit()
    save_model("base", result.model, result.facts)
    return loader.shards.folder.parent


def questions() -> dict[str, list[Example]]:
    """{split: examples}: one wording of each country is held out."""
    splits = {"train": [], "val": []}
    for n, (country, city) in enumerate(CAPITALS.items()):
        for w, wording in enumerate(WORDINGS):
            split = "val" if w == n % len(WORDINGS) else "train"
            turns = (Turn("user", wording.format(country)), Turn("assistant", f"{city}."))
            splits[split].append(Example(turns, "capital", "made", None, w, split))
    return splits


def right(generator: Generator, examples: list[Example]) -> int:
    answers = [
        generator.generate_text([Message("user", e.prompt[0].content)], temperature=0.0, max_new_tokens=12)
        for e in examples
    ]
    return sum(a == e.answer for a, e in zip(answers, examples, strict=True))


def main(quick: bool) -> None:
    made = base_model(quick)
    tokenizer = Tokenizer(made / "tokenizer")
    generator = Generator(load_model("base"), tokenizer, "cpu")
    examples = questions()
    write_chat("chat", examples, tokenizer, context=96, verifier_version=VERIFIER_VERSION)
    first = next(iter(ChatShards("chat", "train")))
    shown = [
        ("⟦" if on else "") + tokenizer.piece(i) + ("⟧" if on else "")
        for i, on in zip(first.tokens.tolist(), first.learnt, strict=True)
    ]
    print("".join(shown).replace("⟧⟦", ""))

    def tune(method: str) -> Tuned:
        sft = Sft(
            method=method,
            steps=12 if quick else 200,
            rows_per_step=4,
            eval_interval=12 if quick else 200,
            eval_tokens=2048,
            warmup_steps=2,
            lora=Lora(rank=16, alpha=32.0),
            lora_lr=5e-3,
        )
        folders = Folders(base="base", tokenizer=made / "tokenizer", chat="chat", text=made / "shards")
        tuning = FineTuning(sft, folders, seed=1, runtime=RUNTIME, world=HERE)
        tuned = tuning.run()
        report = tuned.report
        print(
            f"{method}: {report.trained_params or report.params:,} of {report.params:,} weights trained, loss of the "
            f"answers {report.before['val_loss']:.3f} -> {report.after['val_loss']:.3f}"
        )
        assert report.after["val_loss"] < report.before["val_loss"]
        if tuned.adapted is not None:
            save_adapter("adapter", tuned.adapted, tuning.base.weights_sha256, tuned.facts)
        return tuned

    full, lora = tune("full"), tune("lora")
    table = {
        "base": generator,
        "full": Generator(full.model, tokenizer, "cpu"),
        "lora": Generator(lora.model, tokenizer, "cpu"),
    }
    held_out = examples["val"]
    for name, g in table.items():
        question = held_out[0].prompt[0].content
        answer = g.generate_text([Message("user", question)], temperature=0.0, max_new_tokens=12)
        print(f"{name:5} {right(g, held_out):2} of {len(held_out)} right; {question} {answer!r}")
    if not quick:
        assert right(table["base"], held_out) == 0
        assert min(right(table[name], held_out) for name in ("full", "lora")) >= 6

    # The adapter by itself, merged, and in PEFT: one function.
    adapted, _, _ = load_adapted("adapter", "base")
    whole = merged(adapted)
    ids = torch.tensor([generator.prompt_ids([Message("user", held_out[0].prompt[0].content)])])
    with torch.no_grad():
        ours, one = adapted(ids)[0], whole(ids)[0]
        before = load_model("base")(ids)[0]
    assert torch.equal(ours, one) and (ours - before).abs().max() > 0.1

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export_huggingface(load_model("base"), tokenizer, "base-hf")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base-hf"), "adapter").eval()
    with torch.no_grad():
        difference = (theirs(ids).logits - ours).abs().max().item()
    print(
        f"PEFT reads the adapter: its logits differ by {difference:.1e} at most, those of the base by "
        f"{(before - ours).abs().max().item():.1f}"
    )
    assert difference < 1e-3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
