"""The cost of choosing one token: ours against the processors of transformers with `torch.multinomial`.

    python -m benchmarks.sampling --vocabulary 50304

Every side chooses from the same rows of logits, whose distribution resembles a language model's: a few likely tokens
and a long tail. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.config.sampling import Sampling
from foundry.inference.sampling import Sampler

CASES = (
    {"temperature": 0.8},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 200, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95, "repetition_penalty": 1.2},
)
SECONDS_PER_TURN = 0.5


def rows_of(vocabulary: int, n: int = 16) -> list[torch.Tensor]:
    """Rows (V,) with the probabilities of Zipf's law to a power, in random order, and noise."""
    generator = torch.Generator().manual_seed(0)
    tail = -1.5 * torch.arange(1, vocabulary + 1).log()
    return [
        tail[torch.randperm(vocabulary, generator=generator)] + torch.randn(vocabulary, generator=generator)
        for _ in range(n)
    ]


def ours(rows: Sequence[torch.Tensor], options: dict[str, float], prompt: list[int]) -> Callable[[], float]:
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(Sampling(**options), prompt, vocab_size=len(rows[0]), generator=generator)
    return lambda: microseconds(sampler.choose, rows)


def theirs(rows: Sequence[torch.Tensor], options: dict[str, float], prompt: list[int]) -> Callable[[], float]:
    from transformers import generation as hf

    made = {
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical_p": hf.TypicalLogitsWarper,
    }
    processors = [kind(options[name]) for name, kind in made.items() if name in options]
    ids, generator = torch.tensor([prompt]), torch.Generator().manual_seed(0)

    def choose(row: torch.Tensor) -> int:
        scores = row[None]
        for processor in processors:
            scores = processor(ids, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))

    return lambda: microseconds(choose, rows)


def microseconds(choose: Callable[[torch.Tensor], int], rows: Sequence[torch.Tensor]) -> float:
    """Mean time of a choice over half a second."""
    n, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS_PER_TURN:
        for row in rows:
            choose(row)
        n += len(rows)
    return 1e6 * seconds / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=4096, help="number of logits (default: %(default)s)")
    add_rounds(parser, 5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, prompt = rows_of(args.vocabulary), list(range(1, 200))
    for options in CASES:
        sides = {"transformers": theirs(rows, options, prompt), "ours": ours(rows, options, prompt)}
        done = take_turns(sides, args.rounds, Measure("us", more_is_better=False))
        done.print(", ".join(f"{name} {value:g}" for name, value in options.items()), base="transformers")


if __name__ == "__main__":
    main()
