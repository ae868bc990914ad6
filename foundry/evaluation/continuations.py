"""Continuations of fixed prompts, to be read: a greedy one and a sampled one each; and how much they repeat and recite."""

from __future__ import annotations

from typing import Any

import numpy as np

from foundry.config import Evaluate
from foundry.data.text.words import gram_words
from foundry.evaluation.intervals import ratio_interval
from foundry.inference import Generator
from foundry.utils.log import get_logger
from foundry.utils.markdown import code

KINDS = ("greedy", "sampled")


def continue_prompts(generator: Generator, params: Evaluate, seed: int) -> list[dict[str, str]]:
    """[{prompt, greedy, sampled}] in the order of the prompts; the same for the same model and seed.

    Of a prompt that does not fit the context, only the end is read; its row has a `note` that says so, and the log does.
    """
    rows = []
    for i, prompt in enumerate(params.prompts):
        common = {"prompt": prompt, "max_new_tokens": params.max_new_tokens, "cut": True}
        rows.append(
            {
                "prompt": prompt,
                "greedy": generator.generate_text(**common, temperature=0.0),
                "sampled": generator.generate_text(**common, temperature=params.temperature, top_p=0.95, seed=seed + i),
            }
        )
        tokens, read = (len(generator.prompt_ids(prompt, cut)) for cut in (False, True))
        if read < tokens:
            rows[-1]["note"] = f"the prompt has {tokens} tokens; the last {read} of them were read (model.max_seq_len)"
            get_logger().warning("evaluate.prompts[%d]: %s", i, rows[-1]["note"])
    return rows


def variety(
    texts: list[str], recited: tuple[np.ndarray, np.ndarray] | None, resamples: int, seed: int
) -> dict[str, Any]:
    """How varied some continuations are, with intervals over them.

    Args:
        recited: of each text (runs of 13 words that the training text has, runs); None: not looked for.

    Returns:
        distinct_1, distinct_2, distinct_3: different n-grams of words among all (Li et al. 2016); repeated_4: 4-grams that stood earlier in the
        same text; recited: share of runs of 13 words that stand in the training text. None where no text is long enough.
    """
    words = [gram_words(t) for t in texts]
    out: dict[str, Any] = {}
    for n in (1, 2, 3, 4):
        grams = [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in words]
        different = np.array([len(set(g)) for g in grams], np.float64)
        every = np.array([len(g) for g in grams], np.float64)
        if n < 4:
            out[f"distinct_{n}"] = ratio_interval(different, every, resamples, seed)
        else:
            out["repeated_4"] = ratio_interval(every - different, every, resamples, seed)
    if recited is not None:
        out["recited"] = ratio_interval(*recited, resamples, seed)
    return out


def samples_markdown(rows: list[dict[str, str]], params: Evaluate) -> str:
    """The samples as Markdown; the prompt is bold-free code, so that nothing in a text is taken for markup."""
    lines = [
        "# Samples",
        "",
        f"Fixed prompts; greedy, and sampled with temperature {params.temperature} and top_p 0.95.",
        "",
    ]
    for row in rows:
        lines += [f"## {code(row['prompt']) or '(empty)'}", ""]
        lines += [f"Note: {row['note']}.", ""] if "note" in row else []
        for kind in KINDS:
            lines += [f"{kind}:", "", *("    " + line for line in (row["prompt"] + row[kind]).split("\n")), ""]
    return "\n".join(lines)
