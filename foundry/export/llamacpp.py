"""The proof that llama.cpp runs the GGUF as the model runs: token ids, log-probabilities and greedy text.

llama.cpp comes from the prebuilt wheel `xllamacpp` (`pip install foundry-lm[llamacpp]`). Without it nothing is proved, and
`proof.json` and the card say so; whether it is installed therefore changes them. The float32 file is held to a tolerance.
The other files differ from it in the rounding of their matrices alone, which the read-back proves; they are run too, for
a figure, since llama.cpp rounds activations beside them.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from foundry.config import ExportError
from foundry.export import llamacpp_child
from foundry.export.gguf_file import export_gguf
from foundry.export.greedy import same_tokens
from foundry.export.hostile import HOSTILE, own_texts
from foundry.export.settings_parity import CHAT, control_symbols, plain_pieces, prove_llamacpp_settings
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import EOS_ID
from foundry.utils.files import write_json

MISSING = "not proved here: xllamacpp is not installed"
ROUNDED = 4  # contexts, the last of those that are given, after which the rounding formats are run
SECONDS = 1800  # for all answers; a large model on a small machine reads some full contexts


def prove_llamacpp(
    files: dict[str, Path],
    scratch: Path,
    model: MiniLLM,
    tokenizer: Tokenizer,
    texts: list[str],
    contexts: list[list[int]],
    begun: list[tuple[list[int], list[int]]],
    tolerance: float,
) -> dict[str, Any]:
    """Compares llama.cpp's run of the float32 GGUF with the model, and runs the other files.

    Args:
        files: {number format: GGUF}; where there is none in f32, one is made for the proof.
        scratch: a folder with room for that and the answers; it is left as it was.
        contexts: tokens after which the log-probabilities of the whole vocabulary are compared.
        begun: [(prompt, our greedy continuation)].

    Returns:
        What was compared, and for each rounding format `total_variation`: half the sum of the absolute differences
        between llama.cpp's probabilities and the model's, in the mean over the last contexts. Where llama.cpp is not
        installed: {"proved": False, "why": ...}.

    Raises:
        ExportError: naming the first text, token or log-probability that differs; or how llama.cpp died.
    """
    if find_spec("xllamacpp") is None:
        return {"proved": False, "why": MISSING}
    barred = Generator(model, tokenizer, "cpu").barred
    contexts = [ids[: model.cfg.max_seq_len - 1] for ids in contexts]
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".llamacpp-") as folder:
        path = files.get("f32") or Path(folder) / "f32.gguf"
        if "f32" not in files:
            export_gguf(model, tokenizer, path, "f32", "proof")
        request = {
            "model": str(path.resolve()),
            "context": model.cfg.max_seq_len,
            "vocab_size": model.cfg.vocab_size,
            # One core stays free: llama.cpp's threads wait by spinning, which costs tenfold where a core is shared.
            "threads": max(1, torch.get_num_threads() - 1),
            "texts": [*HOSTILE, *own_texts(tokenizer), *texts],
            "contexts": contexts,
            "prompts": [(ids, len(ours)) for ids, ours in begun],
            "barred": barred,
            "chat": CHAT,
            "pieces": plain_pieces(tokenizer),
            # Control symbols and some pieces; a piece that ends a text would have been forced to be a control symbol.
            "possible_ends": [*control_symbols(tokenizer), *plain_pieces(tokenizer)[:4]],
            "plain": next(
                i for i in range(tokenizer.vocab_size) if i not in barred and not tokenizer.is_byte(i) and i != EOS_ID
            ),
        }
        answer = _ask(request, Path(folder))
        real = contexts[-ROUNDED:]
        short = {**request, "texts": [], "prompts": [], "contexts": real, "possible_ends": []}
        rounded = {
            kind: _ask({**short, "model": str(path.resolve())}, Path(folder))["log_probs"]
            for kind, path in files.items()
            if kind != "f32"
        }
    tokens = _same_ids(answer["ids"], request["texts"], tokenizer)
    settings = prove_llamacpp_settings(answer["settings"], model.cfg, tokenizer)
    worst = _same_log_probs(answer["log_probs"], contexts, model, tolerance)
    same, ties = _same_greedy(answer["greedy"], begun, model, tokenizer, tolerance)
    return {
        "proved": True,
        "token_ids": {"strings": len(request["texts"]), "tokens": tokens, "different": 0},
        "settings": {"compared": settings, "different": 0},
        "log_probs": {
            "positions": len(contexts),
            "vocabulary": model.cfg.vocab_size,
            "tolerance": tolerance,
            "largest_difference_below": power_of_ten(worst),
        },
        "greedy": {"prompts": len(begun), "tokens": same, "ties": ties, "different": 0},
        "formats": {
            kind: {"total_variation": _total_variation(kind, answers, real, model)} for kind, answers in rounded.items()
        },
    }


def _ask(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs the child.

    Raises:
        ExportError: if it dies or does not answer, with the signal and its last words.
    """
    question, answer = folder / "request.json", folder / "answer.json"
    write_json(question, request)
    # -P: the script's own folder holds modules of this package, which must not shadow others.
    command = [sys.executable, "-P", llamacpp_child.__file__, str(question), str(answer)]
    name = Path(request["model"]).name
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ExportError(f"llama.cpp did not answer about {name} in {SECONDS} s") from None
    if done.returncode or not answer.is_file():
        how = f"with exit code {done.returncode}"
        if done.returncode < 0:
            how = f"of {signal.Signals(-done.returncode).name}"
        last = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise ExportError(f"llama.cpp died {how} on {name}:\n  " + "\n  ".join(last))
    return json.loads(answer.read_text(encoding="utf-8"))


def _same_ids(theirs: list[list[int]], texts: list[str], tokenizer: Tokenizer) -> int:
    tokens = 0
    for text, ids in zip(texts, theirs, strict=True):
        ours = tokenizer.encode(text, bos=True)
        if ours != ids:
            pairs = enumerate(zip(ours, ids, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(ids)))
            raise ExportError(
                f"token ids differ from position {at} on for {text[:60]!r}: {ours[at : at + 5]} in SentencePiece, "
                f"{ids[at : at + 5]} in llama.cpp"
            )
        tokens += len(ours)
    return tokens


@torch.inference_mode()
def _same_log_probs(theirs: list[list[float]], contexts: list[list[int]], model: MiniLLM, tolerance: float) -> float:
    worst = 0.0
    for number, (ids, seen) in enumerate(zip(contexts, theirs, strict=True)):
        ours = model(torch.tensor([ids]))[0][0, -1].double().log_softmax(-1)
        difference = (ours - torch.tensor(seen, dtype=torch.float64)).abs()
        at = int(difference.argmax())
        if not difference[at].item() <= tolerance:
            raise ExportError(
                f"log-probabilities after the {len(ids)} tokens of context {number} differ in llama.cpp: token {at} has "
                f"{seen[at]:.6g}, here {ours[at]:.6g}; allowed is {tolerance:g} (export.parity_tolerance)"
            )
        worst = max(worst, difference[at].item())
    return worst


@torch.inference_mode()
def _total_variation(kind: str, theirs: list[list[float]], contexts: list[list[int]], model: MiniLLM) -> float:
    """Distance of llama.cpp's distributions from the model's, 0 to 1, in the mean over the contexts; a figure, no gate.

    Raises:
        ExportError: if they are no distributions.
    """
    total = 0.0
    for ids, seen in zip(contexts, theirs, strict=True):
        ours = model(torch.tensor([ids]))[0][0, -1].double().softmax(-1)
        probabilities = torch.tensor(seen, dtype=torch.float64).exp()
        if not abs(probabilities.sum().item() - 1) < 1e-2:
            raise ExportError(f"llama.cpp's probabilities of the {kind} file sum to {probabilities.sum().item():g}")
        total += (ours - probabilities).abs().sum().item() / 2
    return round(total / len(contexts), 4)


def _same_greedy(
    theirs: list[list[int]],
    begun: list[tuple[list[int], list[int]]],
    model: MiniLLM,
    tokenizer: Tokenizer,
    tolerance: float,
) -> tuple[int, int]:
    total, ties = 0, 0
    for (ids, ours), seen in zip(begun, theirs, strict=True):
        ended = seen + [EOS_ID] * (len(seen) < len(ours) and EOS_ID not in seen)
        same, tie = same_tokens(model, tokenizer, ids, ours, ended, tolerance, "llama.cpp")
        total, ties = total + same, ties + tie
    return total, ties


def power_of_ten(x: float) -> float:
    """The next power of ten above: the machine's last bits stay out of a file that must be reproducible."""
    return float(f"1e{math.floor(math.log10(x)) + 1}") if x > 0 else 0.0
