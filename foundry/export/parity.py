"""The proof of an export: the written files are read back and compared with the source model, in float32 on the CPU.

    weights      every tensor of the Hugging Face folder, read back into a MiniLLM, equals the source bit for bit
    token ids    transformers' tokenizer on hostile strings, the vocabulary's symbols and pieces, and real text, decoded
                 again
    logits       transformers' own class, offline, on random tokens and real text in full contexts
    greedy text  the same continuations of given prompts
    settings     everything beside the weights as transformers loads it: symbols, chat template, context, generation
    gguf         every tensor and key of each file, read back, equals the source in the file's number format
    llama.cpp    token ids, settings, log-probabilities and greedy text of the float32 GGUF, if `xllamacpp` is installed

Any difference is an `ExportError` that says which and by how much; the caller gives nothing a final name before all
comparisons have succeeded. Costs the import of transformers (some seconds) and about thirty forward passes of a full
context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from foundry.config import ExportError
from foundry.export.differences import check_ids, power_of_ten
from foundry.export.gguf_parity import prove_gguf
from foundry.export.greedy import Continuation, continuation, prove_greedy
from foundry.export.hostile import HOSTILE, own_texts
from foundry.export.llamacpp import prove_llamacpp
from foundry.export.proof import GreedyProof, LogitsProof, Proof, TokenIdsProof
from foundry.export.settings_parity import prove_settings, prove_weights
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import EOS_ID

ROWS = 4  # contexts of random tokens, and as many of real text


def prove(
    folder: str | Path,
    ggufs: dict[str, Path],
    model: MiniLLM,
    tokenizer: Tokenizer,
    texts: list[str],
    prompts: list[str],
    tolerance: float,
) -> Proof:
    """Compares an export with its source; returns what was compared, for `proof.json`.

    Args:
        folder: the Hugging Face folder.
        ggufs: {number format: file}.
        texts: real text, for token ids and logits.
        prompts: for greedy continuations; a long one is cut to half of the context.
        tolerance: largest difference of logits and log-probabilities.

    Raises:
        ExportError: at the first comparison that fails.
    """
    folder = Path(folder)
    model = model.float().cpu().eval()
    weights = prove_weights(folder, model)
    generator = Generator(model, tokenizer, "cpu")
    continuations = [continuation(generator, prompt) for prompt in prompts]
    contexts = [row[0].tolist() for row in _contexts(model, tokenizer, texts)]
    source = folder / "model.safetensors"
    # llama.cpp answers in processes of its own, while this one imports transformers.
    with ThreadPoolExecutor(1) as beside:
        scratch, asked = folder.parent, (texts, contexts, continuations)
        llama_cpp = beside.submit(prove_llamacpp, ggufs, scratch, model, tokenizer, *asked, tolerance)
        hf_model, hf_tokenizer = load_transformers(folder)
        token_ids = _prove_ids(hf_tokenizer, tokenizer, texts)
        logits = _prove_logits(hf_model, model, tokenizer, texts, tolerance)
        greedy = _prove_greedy(hf_model, generator, continuations, tolerance)
        settings = prove_settings(folder, hf_model, hf_tokenizer, model, tokenizer)
        del hf_model
        return Proof(
            weights=weights,
            token_ids=token_ids,
            logits=logits,
            greedy=greedy,
            settings=settings,
            gguf={kind: prove_gguf(path, kind, model.cfg, tokenizer, source) for kind, path in ggufs.items()},
            llama_cpp=llama_cpp.result(),
        )


def load_transformers(folder: Path) -> tuple[Any, Any]:
    """(transformers' model, its tokenizer) of the folder, loaded without a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        hf, info = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as e:
        raise ExportError(f"transformers cannot load {folder.name}: {e}") from e
    if odd := {k: sorted(map(str, v)) for k, v in info.items() if v}:
        raise ExportError(f"transformers loads {folder.name} with {odd}")
    return hf.eval(), tokenizer


def _prove_ids(hf: Any, tokenizer: Tokenizer, texts: list[str]) -> TokenIdsProof:
    tokens, own = 0, own_texts(tokenizer)
    for text in (*HOSTILE, *own, *texts):
        ours = tokenizer.encode(text, bos=True)
        theirs = hf(text, split_special_tokens=True)["input_ids"]
        check_ids(text, ours, theirs, "transformers")
        back = hf.decode(theirs, skip_special_tokens=True)
        if back != text:
            raise ExportError(f"transformers decodes the tokens of {text[:60]!r} to {back[:60]!r}")
        tokens += len(ours)
    return TokenIdsProof(
        strings=len(HOSTILE) + len(own) + len(texts), hostile=len(HOSTILE), of_the_vocabulary=len(own), tokens=tokens
    )


@torch.inference_mode()
def _prove_logits(hf: Any, model: MiniLLM, tokenizer: Tokenizer, texts: list[str], tolerance: float) -> LogitsProof:
    compared, worst = 0, 0.0
    for row in _contexts(model, tokenizer, texts):
        # One row at a time: logits of all rows of a large vocabulary would not fit the memory of a small machine.
        difference = hf(row).logits.sub_(model(row)[0]).abs_().max().item()
        if not difference <= tolerance:
            raise ExportError(f"logits differ by {difference:.3g}, allowed are {tolerance:g} (export.parity_tolerance)")
        worst, compared = max(worst, difference), compared + row.numel()
    return LogitsProof(tokens=compared, tolerance=tolerance, largest_difference_below=power_of_ten(worst))


def _contexts(model: MiniLLM, tokenizer: Tokenizer, texts: list[str]) -> Iterator[torch.Tensor]:
    """int64 (1, T): random tokens, then real text, its documents joined and repeated until a context is full."""
    T, V = model.cfg.max_seq_len, model.cfg.vocab_size
    yield from torch.randint(V, (ROWS, T), generator=torch.Generator().manual_seed(0)).split(1)
    real: list[int] = []
    for text in texts:
        real += tokenizer.encode(text, bos=True, eos=True)
        if len(real) >= ROWS * T:
            break
    if real:
        rows = min(ROWS, -(-len(real) // T))
        yield from torch.tensor((real * -(-rows * T // len(real)))[: rows * T]).view(rows, T).split(1)


@torch.inference_mode()
def _prove_greedy(hf: Any, generator: Generator, continuations: list[Continuation], tolerance: float) -> GreedyProof:
    theirs = []
    for c in continuations:
        ids = torch.tensor([c.prompt])
        out = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=c.limit,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            suppress_tokens=list(generator.text.barred),
            eos_token_id=EOS_ID,
            pad_token_id=EOS_ID,
        )
        theirs.append(out[0, len(c.prompt) :].tolist())
    return prove_greedy(generator.model, generator.tokenizer, continuations, theirs, tolerance, "transformers")
