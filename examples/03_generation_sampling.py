"""03 · Sampling: every strategy with what it promises, on one small model.

    python examples/03_generation_sampling.py            # about 40 s of one core
    python examples/03_generation_sampling.py --quick    # a smaller model; the same assertions

A small model is trained on this project's documentation in a temporary folder; then the same prompt is continued with
each parameter. `foundry generate`, the server and its page have all of them under the same names.

Expected output (the texts change with the documentation and the processor):

    temperature=0.0  's:/ scheduler models:/foundry-training-tuni-trai'
    temperature=0.0  's:/ scheduler models:/foundry-training-tuni-trai'
    the model's own distribution  ' and the model is comped from its own, betweened'
    the model's own distribution  ' and the model is comped from its own, betweened'
    the model's own distribution  '.\\n\\n<!-- not run: it needs the retext: what it re'
    temperature=1e-06  's:/ scheduler models:/foundry-training-tuni-trai'
    temperature=1.0, dynatemp_range=0.5  ' and rechat by shard read, SIA format, neited be'
    temperature=1.0, dynatemp_range=0.5, dynatemp_exponent=1.0  ' and rechat by shard read, SIA format, neited be'
    top_k=1  's:/ scheduler models:/foundry-training-tuni-trai'
    top_p=1e-06  's:/ scheduler models:/foundry-training-tuni-trai'
    min_p=1.0  's:/ scheduler models:/foundry-training-tuni-trai'
    top_n_sigma=1e-06  's:/ scheduler models:/foundry-training-tuni-trai'
    top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, top_n_sigma=0.0  ' and the model is comped from its own, betweened'
    top_k=40  ' and the model and exactlytripted.\\n\\n## For\\n\\n[@ur'
    top_p=0.9  ' and the model reup | by ids, or of its short an'
    min_p=0.1  ' and the model in these\\n  client, or sloaded, an'
    typical_p=0.5  ' and cometest, or trained as costarts, parm and '
    top_p=1.0, top_p_decay=0.01, top_p_min=1e-06  ' and the model that it is never fings; `foundry '
    top_p=1.0, top_p_decay=0.01, top_p_reset_ids=(0, 1, 2, 3, 4, 5, 6, 7,  ' and the model is comped from its own, b …
    temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0, repetiti 's:/ scheduler questions: the list of tha …
    logit_bias={986: 100.0}, temperature=0.0  'zzzz'
    logit_bias={986: -100.0}  ' and the model is comped from its own, betweened'
    temperature=0.0, bad_words=[[935]]  ' and the model that it is never fingerprint, the'
    logit_bias={2: 100.0}  ''
    logit_bias={2: 100.0}, min_tokens=5  ' and the model is comp'
    JSON of a schema: {'steps': 25, 'fast': False}
    all 17 parameters were shown

What to notice:

- A text is a function of the model, the prompt, the parameters and the seed. No global random state takes part.
- Filters cut the distribution (top_k, top_p, min_p, typical_p, top_n_sigma), temperatures change its shape, penalties
  and biases change single tokens. They are applied in one fixed order (docs/en/inference.md).
- A constraint decides which tokens may come next, so that even a model that never saw JSON writes valid JSON.
"""

import argparse
import contextlib
import json
import re
import tempfile
from pathlib import Path

from foundry import DataLoader, Generator, ModelConfig, TrainConfig, Trainer
from foundry.config import Runtime
from foundry.config.sampling import PARAMETERS
from foundry.inference.constraints import Grammars

DOCS = Path(__file__).resolve().parents[1] / "docs" / "en"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
RUNTIME = Runtime(device="cpu", precision="float32", compile="never")
PROMPT = "The model"


def trained(quick: bool) -> Generator:
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8") for name in PAGES[: 4 if quick else None]]
    Path("pages.txt").write_text("\n<|endoftext|>\n".join(pages), encoding="utf-8")
    rows, dim, layers, steps = (8, 48, 2, 25) if quick else (16, 128, 3, 250)
    loader = DataLoader(file_path="pages.txt", batch_size=rows, block_size=96, vocab_size=1024)
    shape = dict(n_heads=4, n_kv_heads=2, ffn_dim=dim * 3, max_seq_len=96)
    config = ModelConfig(vocab_size=loader.tokenizer.vocab_size, dim=dim, n_layers=layers, **shape)
    recipe = TrainConfig(max_iters=steps, eval_interval=steps, warmup_steps=steps // 10, eval_tokens=2048)
    result = Trainer(config, recipe, loader, runtime=RUNTIME).fit()
    return Generator(result.model, loader.tokenizer, "cpu")


def main(quick: bool) -> None:
    generator = trained(quick)
    tokenizer, shown = generator.tokenizer, set()
    start = generator.prompt_ids(PROMPT)

    def ids(count: int = 24, seed: int = 1, **sampling) -> list[int]:
        """New tokens; prints their text and notes which parameters were shown."""
        found = list(generator.generate_ids(start, max_new_tokens=count, seed=seed, **sampling))
        shown.update(sampling)
        label = ", ".join(f"{k}={v!r}" for k, v in sampling.items()) or "the model's own distribution"
        print(f"{label[:70]:70} {tokenizer.decode(found)[:48]!r}")
        return found

    # The choice itself: greedy, sampled, and the temperatures between and around them.
    greedy = ids(temperature=0.0)
    assert greedy == ids(temperature=0.0, seed=2), "greedy text does not depend on the seed"
    sampled = ids()
    assert sampled == ids() and sampled != ids(seed=2), "the seed decides a sampled text"
    assert ids(temperature=1e-6) == greedy, "a very low temperature is greedy"
    assert ids(temperature=1.0, dynatemp_range=0.5) == ids(temperature=1.0, dynatemp_range=0.5, dynatemp_exponent=1.0)

    # Filters: at their strictest each leaves the most likely token only; at their off value they change nothing.
    assert ids(top_k=1) == greedy
    assert ids(top_p=1e-6) == greedy
    assert ids(min_p=1.0) == greedy
    assert ids(top_n_sigma=1e-6) == greedy
    assert ids(top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, top_n_sigma=0.0) == sampled
    ids(top_k=40)
    ids(top_p=0.9)
    ids(min_p=0.1)
    ids(typical_p=0.5)
    decayed = ids(top_p=1.0, top_p_decay=0.01, top_p_min=1e-6)
    assert decayed[:1] == sampled[:1], "the first token is drawn before top_p has decayed"
    assert ids(top_p=1.0, top_p_decay=0.01, top_p_reset_ids=tuple(range(tokenizer.vocab_size))) == sampled

    # Single tokens: penalties, biases, forbidden and forced ones.
    once = ids(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=1.5)
    assert len(set(once)) > len(set(greedy)), "penalties make a text repeat itself less"
    wanted = tokenizer.encode("z")[-1]
    assert ids(4, logit_bias={wanted: 100.0}, temperature=0.0) == [wanted] * 4
    assert wanted not in ids(logit_bias={wanted: -100.0})
    assert greedy[0] not in ids(temperature=0.0, bad_words=[[greedy[0]]])
    ends = {tokenizer.eos_id: 100.0}
    assert ids(logit_bias=ends) == [] and len(ids(logit_bias=ends, min_tokens=5)) == 5, "the end is held back"

    # Text: a stream joins to the whole, a stop text is no part of it, a constraint holds.
    parts = list(generator.stream(PROMPT, seed=3, max_new_tokens=30))
    whole = generator.generate_text(PROMPT, seed=3, max_new_tokens=30)
    assert "".join(parts) == whole and len(parts) > 1
    letter = next(c for c in whole[1:] if c.isalnum())
    assert generator.generate_text(PROMPT, seed=3, max_new_tokens=30, stop=letter) == whole[: whole.index(letter)]
    schema = {
        "type": "object",
        "properties": {"steps": {"type": "integer", "minimum": 1, "maximum": 99}, "fast": {"type": "boolean"}},
        "required": ["steps", "fast"],
        "additionalProperties": False,
    }
    constraint = Grammars(tokenizer).json_schema(schema)
    answer = generator.generate_text(PROMPT, seed=1, max_new_tokens=80, constraint=constraint)
    value = json.loads(answer)
    print(f"JSON of a schema: {value}")
    assert re.fullmatch(r"[1-9][0-9]?", str(value["steps"])) and isinstance(value["fast"], bool)

    missing = {p.name for p in PARAMETERS} - shown
    assert not missing, f"this example does not show {missing}"
    print(f"all {len(PARAMETERS)} parameters were shown")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
