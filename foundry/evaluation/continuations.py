"""Continuations of fixed prompts for people to read, greedy and sampled; how much they repeat and recite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foundry.config import Evaluate
from foundry.data.text.words import gram_words
from foundry.evaluation.contamination import SharedRuns
from foundry.evaluation.intervals import ratio_interval
from foundry.inference import Generator
from foundry.utils.evaluation_report import SampleVariety
from foundry.utils.log import get_logger
from foundry.utils.markdown import code

KINDS = ("greedy", "sampled")
TOP_P = 0.95


@dataclass(frozen=True)
class PromptSample:
    """A prompt and its continuations.

    Attributes:
        note: what a reader has to know, for example that only the end of the prompt was read.
    """

    prompt: str
    greedy: str
    sampled: str
    note: str | None = None

    def text(self, kind: str) -> str:
        """The continuation of one of `KINDS`."""
        return {"greedy": self.greedy, "sampled": self.sampled}[kind]


def continue_prompts(generator: Generator, params: Evaluate, seed: int) -> list[PromptSample]:
    """Continues the prompts of the parameters, in their order; the same for the same model and seed.

    Only the end of a prompt that does not fit the context is read; a note and a log line say so.
    """
    samples = []
    for i, prompt in enumerate(params.prompts):
        common = {"prompt": prompt, "max_new_tokens": params.max_new_tokens, "cut": True}
        greedy = generator.generate_text(**common, temperature=0.0)
        sampled = generator.generate_text(**common, temperature=params.temperature, top_p=TOP_P, seed=seed + i)
        tokens, read = (len(generator.prompt_ids(prompt, cut)) for cut in (False, True))
        note = None
        if read < tokens:
            note = f"the prompt has {tokens} tokens; the last {read} of them were read (model.max_seq_len)"
            get_logger().warning("evaluate.prompts[%d]: %s", i, note)
        samples.append(PromptSample(prompt, greedy, sampled, note))
    return samples


def variety(texts: list[str], recited: SharedRuns | None, resamples: int, seed: int) -> SampleVariety:
    """How varied some continuations are, with intervals over them.

    Args:
        recited: their runs of words that are in the training text; None if nobody looked for them.
    """
    words = [gram_words(t) for t in texts]
    found = {}
    for n in (1, 2, 3, 4):
        grams = [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in words]
        different = np.array([len(set(g)) for g in grams], np.float64)
        every = np.array([len(g) for g in grams], np.float64)
        if n < 4:
            found[f"distinct_{n}"] = ratio_interval(different, every, resamples, seed)
        else:
            found["repeated_4"] = ratio_interval(every - different, every, resamples, seed)
    if recited is not None:
        found["recited"] = ratio_interval(recited.seen, recited.runs, resamples, seed)
    return SampleVariety(**found)


def samples_markdown(samples: Sequence[PromptSample], params: Evaluate) -> str:
    """`reports/samples.md`. Texts are indented code blocks, so that nothing in them is read as markup."""
    lines = [
        "# Samples",
        "",
        f"Fixed prompts; greedy, and sampled with temperature {params.temperature} and top_p {TOP_P}.",
        "",
    ]
    for sample in samples:
        lines += [f"## {code(sample.prompt) or '(empty)'}", ""]
        lines += [f"Note: {sample.note}.", ""] if sample.note else []
        for kind in KINDS:
            text = sample.prompt + sample.text(kind)
            lines += [f"{kind}:", "", *("    " + line for line in text.split("\n")), ""]
    return "\n".join(lines)
