"""From a folder with a model to what serves it: nothing is loaded before its hashes have been compared.

A folder is an export (`foundry.export`), its part `hf`, or a trained model with its tokenizer beside it. An export is
checked file by file; of a trained model the weights and the tokenizer have recorded hashes.
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import DataError, ExportError, FoundryError, Serving
from foundry.serving.version import Facts
from foundry.utils.bootstrap import Interval

if TYPE_CHECKING:
    from foundry.export.proof import ExportRecord
    from foundry.inference.engine import Drafter, Engine
    from foundry.inference.request import Backend, Event
    from foundry.models import MiniLLM
    from foundry.tokenizers import Tokenizer

CHECK_SECONDS = 120.0  # for the first token of a model that was just loaded
EVALUATION = "reports/evaluate.json"
GGUF_TYPES = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer.

    Attributes:
        name: of the model, as a client gives it.
    """

    name: str
    backend: Backend
    tokenizer: Tokenizer
    facts: Facts


def load_folder(folder: Path, serving: Serving, device: str, source: str, version: str | None = None) -> Loaded:
    """Verifies a folder, loads it and lets it answer once.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        source, version: for the facts: where the folder came from.

    Raises:
        FoundryError: if the folder contains no model, a file is missing or damaged (the message names it), the backend
            or format cannot be had here, or the model cannot answer.
    """
    if not os.path.isdir(folder):  # False for an impossible name, where Path.is_dir raises
        raise DataError(
            f"{str(folder)[:200]} is not a folder with a model: give an export (artifacts/export), a trained model "
            "(artifacts/model) or models:/NAME@ALIAS; `make repro` builds the first two"
        )
    root = folder.parent if folder.name == "hf" and (folder.parent / "proof.json").is_file() else folder
    load = _load_export if (root / "proof.json").is_file() else _load_trained
    loaded = load(root, serving, device, source, version)
    try:
        _check(loaded)
    except BaseException:
        loaded.backend.close(drain=False)
        raise
    return loaded


def _load_export(folder: Path, serving: Serving, device: str, source: str, version: str | None) -> Loaded:
    from foundry.export.huggingface import import_huggingface
    from foundry.export.lineage import NAME as LINEAGE
    from foundry.export.lineage import read_lineage
    from foundry.export.manifest import verify_export

    record = verify_export(folder)
    licences = {s.license for s in read_lineage(folder).raw} if (folder / LINEAGE).is_file() else set()
    model, tokenizer = import_huggingface(folder / "hf")
    if tokenizer.sha256 != record.tokenizer_sha256:
        raise ExportError(f"{folder}: hf/tokenizer.model is not the tokenizer that the model was trained with")
    facts = Facts(
        source=source,
        version=version,
        fingerprint=record.fingerprint,
        weights_sha256=record.weights_sha256,
        tokenizer_sha256=record.tokenizer_sha256,
        context_length=model.cfg.max_seq_len,
        vocabulary=model.cfg.vocab_size,
        parameters=model.get_num_params(non_embedding=False),
        weights=serving.weights,
        backend=serving.backend,
        bits_per_byte=record.bits_per_byte,
        license=licences.pop() if len(licences) == 1 else None,
        chat_trained=record.chat is not None,
    )
    if serving.backend == "llamacpp":
        backend, weights = _llamacpp(folder, record, serving, tokenizer, model.cfg.max_seq_len)
        facts = facts.model_copy(update={"weights": weights})
    else:
        backend = _engine(model, tokenizer, serving, device)
    return Loaded(record.model_name, backend, tokenizer, facts)


def _load_trained(folder: Path, serving: Serving, device: str, source: str, version: str | None) -> Loaded:
    from foundry.models import load_trained_model
    from foundry.tokenizers import Tokenizer

    if serving.backend == "llamacpp":
        raise ExportError(f"{folder} has no GGUF file for serving.backend llamacpp: give an export (artifacts/export)")
    model, known = load_trained_model(folder)
    tokenizer = Tokenizer(folder.parent / "tokenizer")
    if tokenizer.sha256 != known.tokenizer_sha256:
        raise DataError(
            f"{tokenizer.path} is not the tokenizer that the model in {folder} was trained with (sha256 "
            f"{tokenizer.sha256[:12]}…, expected {known.tokenizer_sha256[:12]}…): `dvc checkout`, or give the export"
        )
    facts = Facts(
        source=source,
        version=version,
        fingerprint=known.fingerprint,
        weights_sha256=known.weights_sha256,
        tokenizer_sha256=known.tokenizer_sha256,
        context_length=model.cfg.max_seq_len,
        vocabulary=model.cfg.vocab_size,
        parameters=model.get_num_params(non_embedding=False),
        weights=serving.weights,
        bits_per_byte=_evaluated(known.weights_sha256),
        chat_trained=known.template_sha256 is not None,
    )
    return Loaded(folder.resolve().name, _engine(model, tokenizer, serving, device), tokenizer, facts)


def _engine(model: MiniLLM, tokenizer: Tokenizer, serving: Serving, device: str) -> Backend:
    from foundry.inference.engine import Engine
    from foundry.inference.formats import in_format
    from foundry.inference.runner import Runner
    from foundry.inference.worker import Worker
    from foundry.utils.device import get_device

    model, pack = in_format(model.to(get_device(device)), serving.weights)
    engine = Engine(Runner(model, serving.max_running, pack), tokenizer)
    engine.drafter = _drafter(engine, serving, device)
    return Worker(engine, serving.max_queue)


def _drafter(engine: Engine, serving: Serving, device: str) -> Drafter | None:
    """Who guesses tokens for an engine, as `serving.speculation` says.

    Raises:
        FoundryError: if the draft model's export is damaged, or has another tokenizer.
    """
    from foundry.export.huggingface import import_huggingface
    from foundry.export.manifest import verify_export
    from foundry.inference.formats import in_format
    from foundry.inference.runner import Runner
    from foundry.inference.speculative import ModelDrafter, NGramDrafter
    from foundry.utils.device import get_device

    if serving.speculation == "ngram":
        return NGramDrafter()
    if serving.draft is None:
        return None
    folder = Path(serving.draft)
    verify_export(folder)
    model, tokenizer = import_huggingface(folder / "hf")
    if tokenizer.sha256 != engine.tokenizer.sha256:
        raise ExportError(f"serving.draft {folder} has another tokenizer than the model that it would guess for")
    model, pack = in_format(model.to(get_device(device)), serving.weights)
    return ModelDrafter(Runner(model, serving.max_running, pack), barred=engine.barred)


def _llamacpp(
    folder: Path, record: ExportRecord, serving: Serving, tokenizer: Tokenizer, context: int
) -> tuple[Backend, str]:
    """llama.cpp with the GGUF file of an export, and the name of its format."""
    from foundry.inference.llamacpp import LlamaCpp

    kind = GGUF_TYPES[serving.weights]
    name = f"{record.model_name}-{kind}.gguf"
    if name not in record.files:
        there = ", ".join(n for n in record.files if n.endswith(".gguf")) or "none"
        raise ExportError(
            f"{folder} has no {name} for serving.weights {serving.weights} (GGUF files there: {there}): choose another "
            "format, or add it to export.gguf_types"
        )
    backend = LlamaCpp(
        folder / name,
        tokenizer,
        context,
        slots=serving.max_running,
        queue=serving.max_queue,
        exact=kind == "f32",
    )
    return backend, kind


def _evaluated(weights_sha256: str) -> Interval | None:
    """Bits per byte of the project's evaluation if it is of these weights."""
    from foundry.utils.evaluation_report import read_evaluation

    try:
        report = read_evaluation(EVALUATION)
    except FoundryError:  # no project, or another version of its report
        return None
    return report.test.bits_per_byte if report.weights_sha256 == weights_sha256 else None


def _check(loaded: Loaded) -> None:
    """Lets a model read a prompt and generate a token, before anyone else can ask it.

    Raises:
        FoundryError: if it cannot, if a log-probability is not finite, or if its tokenizer does not fit.
    """
    from foundry.inference.request import Delta, Finished, PromptScores, Request

    tokenizer, facts = loaded.tokenizer, loaded.facts
    if tokenizer.vocab_size != facts.vocabulary:
        raise FoundryError(f"the model has {facts.vocabulary} tokens and its tokenizer {tokenizer.vocab_size}")
    ids = tuple(tokenizer.encode("The ", bos=True)[: facts.context_length - 1])
    events: list[Event] = []
    done = threading.Event()

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished):
            done.set()

    loaded.backend.submit(Request(ids, max_tokens=1, seed=0, logprobs=1), listen)
    if not done.wait(CHECK_SECONDS):
        raise FoundryError(f"the model gave no token within {CHECK_SECONDS:g} s of being loaded")
    end = events[-1]
    if isinstance(end, Finished) and end.reason == "error":
        raise FoundryError(f"the model cannot answer: {end.message}")
    scored = [t for e in events if isinstance(e, Delta | PromptScores) for t in e.tokens]
    if any(t.logprob is not None and not math.isfinite(t.logprob) for t in scored):
        raise FoundryError("the model's log-probabilities are not finite: its weights are damaged")
