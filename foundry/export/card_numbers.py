"""The model card's numbers: evaluation, tasks, contamination, number formats and the proof, all from the reports."""

from __future__ import annotations

from typing import Any

from foundry.export.proof import FormatCosts, GreedyProof, LlamaCppMissing, LlamaCppProof, Proof
from foundry.utils.bootstrap import Interval
from foundry.utils.evaluation_report import Contamination, EvaluationReport, PartScore, TaskScore
from foundry.utils.markdown import table


def evaluation_section(report: EvaluationReport) -> list[str]:
    """Bits per byte with intervals; baselines on the same bytes, tasks and contamination if they were measured."""

    def row(what: str, part: PartScore) -> list[Any]:
        b = part.bits_per_byte
        return [what, f"{b.value:.4f}", f"{b.low:.4f} to {b.high:.4f}", part.documents]

    rows = [row("test split", report.test), *(row(f"of it {s}", part) for s, part in report.by_source.items())]
    perplexity = report.test.perplexity_token
    lines = [
        "## Evaluation",
        "",
        "Bits per UTF-8 byte of held-out documents (lower is better), with a 95 % bootstrap interval over documents.",
        "",
        *table(["text", "bits per byte", "interval", "documents"], rows),
        "",
        f"Perplexity per token of this vocabulary: {perplexity.value} ({perplexity.low} to {perplexity.high}).",
    ]
    if report.baselines:
        compressed = [[n, f"{b.alone:.4f}", f"{b.given_train:.4f}"] for n, b in report.baselines.items()]
        lines += ["", "The same bytes compressed, in bits per byte:", ""]
        lines += table(["compressor", "by itself", "given the training text"], compressed)
    return [*lines, *_tasks(report.tasks), *_contamination(report.contamination)]


def _tasks(tasks: dict[str, TaskScore]) -> list[str]:
    if not tasks:
        return []
    rows = []
    for name, t in tasks.items():
        overlap = _share(t.contamination.texts if t.contamination else None)
        rows.append([name, f"{t.score:.4f}", f"{t.low:.4f} to {t.high:.4f}", f"{t.chance:.4f}", t.n, overlap])
    head = ["task", "right", "interval", "chance", "questions", "of them with a run of words of the training text"]
    return ["", "Questions without examples in the prompt:", "", *table(head, rows)]


def _contamination(found: Contamination | None) -> list[str]:
    if not found:
        return []
    return [
        "",
        f"Contamination: {_share(found.texts)} of {found.looked_at} test documents have a run of {found.ngram} words "
        f"that is in the training text; {_share(found.runs)} of all their runs are.",
    ]


def _share(interval: Interval | None) -> str:
    """A share with its interval, in percent."""
    if not interval:
        return "not searched, or too short"
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def formats_section(costs: FormatCosts | None, sizes: dict[str, int]) -> list[str]:
    """Every weight file with its size, and what its number format costs if that was measured.

    Args:
        costs: of `quantised.measure`.
        sizes: {file of weights: bytes}.
    """
    by_file = {c.file: c for c in costs.formats.values()} if costs else {}

    def row(name: str, size: int) -> list[Any]:
        if name not in by_file:
            exact = name.endswith(("model.safetensors", "-f32.gguf"))
            return [name, f"{size:,}", "as the model" if exact else "not measured", "", ""]
        c, d = by_file[name], by_file[name].difference
        interval = f"{d.value:+.5f} ({d.low:+.5f} to {d.high:+.5f})"
        return [name, f"{size:,}", f"{c.bits_per_byte:.4f}", interval, f"{c.top1_agreement:.2%}"]

    head = ["file", "bytes", "bits per byte", "difference (95 % interval)", "same most likely token"]
    lines = ["## Number formats", "", *table(head, [row(name, size) for name, size in sizes.items()])]
    if costs:
        lines += [
            "",
            f"Measured on {costs.tokens:,} tokens of {costs.documents:,} documents of the test split, where the model "
            f"itself has {costs.float.bits_per_byte:.4f}; the matrices were dequantised, so that rounding of "
            "activations in an engine comes on top.",
        ]
    return lines


def proof_section(p: Proof) -> list[str]:
    """What the written files were compared with before they were given a name."""
    ids, logits = p.token_ids, p.logits
    logits_row = f"{logits.tokens:,} tokens, off by less than {logits.largest_difference_below:g}"
    greedy_row = f"{p.greedy.tokens} tokens of {p.greedy.prompts} prompts, {_ties(p.greedy)}"
    rows = [
        ["weights", "safetensors, read back", f"{p.weights.tensors} tensors bit for bit"],
        ["token ids", "transformers", f"{ids.tokens:,} tokens of {ids.strings} strings, none different"],
        ["logits", "transformers", logits_row],
        ["greedy text", "transformers", greedy_row],
        ["symbols, chat template and other settings", "transformers", f"{p.settings.compared}, none different"],
    ]
    for g in p.gguf.values():
        rounding = "bit for bit" if g.format == "f32" else f"largest rounding {g.largest_rounding:g}"
        rows.append([f"GGUF {g.format}", "gguf, read back", f"{g.tensors} tensors, every key; {rounding}"])
    return [
        "## Proof",
        "",
        "Each file was loaded by an independent implementation and compared with the trained model; "
        "`proof.json` has the figures.",
        "",
        *table(["what", "loaded by", "result"], [*rows, *_llama_cpp(p.llama_cpp)]),
    ]


def _llama_cpp(p: LlamaCppProof | LlamaCppMissing) -> list[list[str]]:
    if isinstance(p, LlamaCppMissing):
        return [["GGUF", "llama.cpp", p.why]]
    ids, logs = p.token_ids, p.log_probs
    logs_row = f"{logs.positions} full contexts, off by less than {logs.largest_difference_below:g}"
    return [
        ["token ids", "llama.cpp", f"{ids.tokens:,} tokens of {ids.strings} strings, none different"],
        ["settings", "llama.cpp", f"{p.settings.compared}, none different"],
        ["log-probabilities, GGUF f32", "llama.cpp", logs_row],
        ["greedy text, GGUF f32", "llama.cpp", f"{p.greedy.tokens} tokens, {_ties(p.greedy)}"],
        *(
            [f"GGUF {kind}", "llama.cpp", f"runs; total variation to the model {f.total_variation:g}"]
            for kind, f in p.formats.items()
        ),
    ]


def _ties(greedy: GreedyProof) -> str:
    ties = greedy.ties
    return f"none different, {ties} {'tie' if ties == 1 else 'ties'}" if ties else "none different"
