"""The proof that llama.cpp runs the GGUF as the model runs: token ids, log-probabilities and greedy text.

llama.cpp comes from the prebuilt wheel `xllamacpp` (`pip install foundry-lm[llamacpp]`). Without it nothing is proved,
and `proof.json` and the card say so; whether it is installed therefore changes them. The float32 file is compared
within a tolerance. The other files differ from it only in the rounding of their matrices, which reading them back
proves; they are run, too, and the distance of their probabilities is recorded but not limited, since llama.cpp also
rounds activations.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from foundry.config import ExportError
from foundry.export import llamacpp_child
from foundry.export.differences import check_ids, power_of_ten
from foundry.export.gguf_file import export_gguf
from foundry.export.greedy import Continuation, prove_greedy
from foundry.export.hostile import HOSTILE, own_texts
from foundry.export.llamacpp_child import Answer, Prompt, Request
from foundry.export.proof import (
    GreedyProof,
    LlamaCppFormat,
    LlamaCppMissing,
    LlamaCppProof,
    LlamaCppTokenIds,
    LogProbsProof,
)
from foundry.export.settings_parity import CHAT, control_symbols, plain_pieces, prove_llamacpp_settings
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import EOS_ID
from foundry.utils.files import write_json

MISSING = "not proved here: xllamacpp is not installed"
ROUNDED = 4  # contexts, the last of those that are given, after which the rounding formats are run
SECONDS = 1800  # for all answers; a large model on a small machine needs minutes for several full contexts


def prove_llamacpp(
    files: dict[str, Path],
    scratch: Path,
    model: MiniLLM,
    tokenizer: Tokenizer,
    texts: list[str],
    contexts: list[list[int]],
    continuations: list[Continuation],
    tolerance: float,
) -> LlamaCppProof | LlamaCppMissing:
    """Compares llama.cpp's run of the float32 GGUF with the model, and runs the other files.

    Args:
        files: {number format: GGUF}; without one in f32, a temporary one is made for the proof.
        scratch: a folder with room for that file and the answers; nothing of them is left in it.
        contexts: token ids after which the log-probabilities of the whole vocabulary are compared.
        continuations: the model's greedy continuations.

    Raises:
        ExportError: naming the first text, token or log-probability that differs; or how llama.cpp died.
    """
    if find_spec("xllamacpp") is None:
        return LlamaCppMissing(why=MISSING)
    contexts = [ids[: model.cfg.max_seq_len - 1] for ids in contexts]
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".llamacpp-") as folder:
        path = files.get("f32") or Path(folder) / "f32.gguf"
        if "f32" not in files:
            export_gguf(model, tokenizer, path, "f32", "proof")
        request = _request(path, model, tokenizer, texts, contexts, continuations)
        answer = ask(request, Path(folder))
        real = contexts[-ROUNDED:]
        short = replace(request, texts=[], prompts=[], contexts=real, possible_ends=[])
        rounded = {
            kind: ask(replace(short, model=str(path.resolve())), Path(folder)).log_probs
            for kind, path in files.items()
            if kind != "f32"
        }
    ids = _prove_ids(answer.ids, request.texts, tokenizer)
    settings = prove_llamacpp_settings(answer.settings, model.cfg, tokenizer)
    log_probs = _prove_log_probs(answer.log_probs, contexts, model, tolerance)
    return LlamaCppProof(
        token_ids=ids,
        settings=settings,
        log_probs=log_probs,
        greedy=_prove_greedy(answer.greedy, continuations, model, tokenizer, tolerance),
        formats={kind: _prove_format(kind, answers, real, model) for kind, answers in rounded.items()},
    )


def _request(
    path: Path,
    model: MiniLLM,
    tokenizer: Tokenizer,
    texts: list[str],
    contexts: list[list[int]],
    continuations: list[Continuation],
) -> Request:
    barred, pieces = list(Generator(model, tokenizer, "cpu").text.barred), plain_pieces(tokenizer)
    ids = range(tokenizer.vocab_size)
    return Request(
        model=str(path.resolve()),
        context=model.cfg.max_seq_len,
        vocab_size=model.cfg.vocab_size,
        # One core stays free: llama.cpp's threads wait by spinning, which costs tenfold where a core is shared.
        threads=max(1, torch.get_num_threads() - 1),
        texts=[*HOSTILE, *own_texts(tokenizer), *texts],
        contexts=contexts,
        prompts=[Prompt(c.prompt, len(c.tokens)) for c in continuations],
        barred=barred,
        chat=list(CHAT),
        conversations=[],
        pieces=pieces,
        # Control symbols, and some pieces, which must not end a text.
        possible_ends=[*control_symbols(tokenizer), *pieces[:4]],
        plain=next(i for i in ids if i not in barred and not tokenizer.is_byte(i) and i != EOS_ID),
    )


def ask(request: Request, folder: Path) -> Answer:
    """Runs the child.

    Raises:
        ExportError: if it dies or does not answer in time, with the signal and the last lines of its error output.
    """
    question, answer = folder / "request.json", folder / "answer.json"
    write_json(question, asdict(request))
    # -P: the script's own folder contains modules of this package, which must not shadow others.
    command = [sys.executable, "-P", llamacpp_child.__file__, str(question), str(answer)]
    name = Path(request.model).name
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
    return Answer.from_json(answer.read_text(encoding="utf-8"))


def _prove_ids(theirs: list[list[int]], texts: list[str], tokenizer: Tokenizer) -> LlamaCppTokenIds:
    tokens = 0
    for text, seen in zip(texts, theirs, strict=True):
        ours = tokenizer.encode(text, bos=True)
        check_ids(text, ours, seen, "llama.cpp")
        tokens += len(ours)
    return LlamaCppTokenIds(strings=len(texts), tokens=tokens)


@torch.inference_mode()
def _prove_log_probs(
    theirs: list[list[float]], contexts: list[list[int]], model: MiniLLM, tolerance: float
) -> LogProbsProof:
    worst = 0.0
    for number, (ids, seen) in enumerate(zip(contexts, theirs, strict=True)):
        ours = model(torch.tensor([ids]))[0][0, -1].double().log_softmax(-1)
        difference = (ours - torch.tensor(seen, dtype=torch.float64)).abs()
        at = int(difference.argmax())
        if not difference[at].item() <= tolerance:
            raise ExportError(
                f"log-probabilities after the {len(ids)} tokens of context {number} differ in llama.cpp: token {at} "
                f"has {seen[at]:.6g}, here {ours[at]:.6g}; allowed is {tolerance:g} (export.parity_tolerance)"
            )
        worst = max(worst, difference[at].item())
    return LogProbsProof(
        positions=len(contexts),
        vocabulary=model.cfg.vocab_size,
        tolerance=tolerance,
        largest_difference_below=power_of_ten(worst),
    )


@torch.inference_mode()
def _prove_format(kind: str, theirs: list[list[float]], contexts: list[list[int]], model: MiniLLM) -> LlamaCppFormat:
    """The distance of llama.cpp's distributions from the model's, in the mean over the contexts; it has no limit.

    Raises:
        ExportError: if they are not distributions.
    """
    total = 0.0
    for ids, seen in zip(contexts, theirs, strict=True):
        ours = model(torch.tensor([ids]))[0][0, -1].double().softmax(-1)
        probabilities = torch.tensor(seen, dtype=torch.float64).exp()
        if not abs(probabilities.sum().item() - 1) < 1e-2:
            raise ExportError(f"llama.cpp's probabilities of the {kind} file sum to {probabilities.sum().item():g}")
        total += (ours - probabilities).abs().sum().item() / 2
    return LlamaCppFormat(total_variation=round(total / len(contexts), 4))


def _prove_greedy(
    theirs: list[list[int]],
    continuations: list[Continuation],
    model: MiniLLM,
    tokenizer: Tokenizer,
    tolerance: float,
) -> GreedyProof:
    """llama.cpp leaves out the end symbol where it ends a text, so it is added here."""
    ended = [
        seen + [EOS_ID] * (len(seen) < len(c.tokens) and EOS_ID not in seen)
        for c, seen in zip(continuations, theirs, strict=True)
    ]
    return prove_greedy(model, tokenizer, continuations, ended, tolerance, "llama.cpp")
