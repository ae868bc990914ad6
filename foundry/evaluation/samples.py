"""Continuations of fixed prompts, to be read: a greedy one and a sampled one each."""

from __future__ import annotations

from foundry.config import Evaluate
from foundry.inference import Generator


def samples(generator: Generator, params: Evaluate, seed: int) -> list[dict[str, str]]:
    """[{prompt, greedy, sampled}] in the order of the prompts; the same for the same model and seed."""
    rows = []
    for i, prompt in enumerate(params.prompts):
        common = {"prompt": prompt, "max_new_tokens": params.max_new_tokens}
        rows.append(
            {
                "prompt": prompt,
                "greedy": generator.generate_text(**common, temperature=0.0),
                "sampled": generator.generate_text(**common, temperature=params.temperature, top_p=0.95, seed=seed + i),
            }
        )
    return rows


def samples_page(rows: list[dict[str, str]], params: Evaluate) -> str:
    """The samples as Markdown; the prompt is bold-free code, so that nothing in a text is taken for markup."""
    lines = [
        "# Samples",
        "",
        f"Fixed prompts; greedy, and sampled with temperature {params.temperature} and top_p 0.95.",
        "",
    ]
    for row in rows:
        lines += [f"## `{row['prompt'].strip() or ' '}`".replace("\n", " "), ""]
        for kind in ("greedy", "sampled"):
            lines += [f"{kind}:", "", *("    " + line for line in (row["prompt"] + row[kind]).split("\n")), ""]
    return "\n".join(lines)
