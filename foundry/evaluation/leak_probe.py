"""Does the trained model look at what it must not see?

A model that reads the token that it has to predict can have any loss.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foundry.config import DataError
from foundry.models import MiniLLM
from foundry.utils.evaluation_report import LeakProbe

TOLERANCE = 1e-5  # of logits; equal shapes are computed in the same way, so that the usual difference is exactly zero


@torch.inference_mode()
def probe_leaks(model: MiniLLM, tokens: np.ndarray, document_mask: bool, seed: int) -> LeakProbe:
    """Changes tokens on which a logit must not depend, and compares the logits.

    Args:
        tokens: of real text; repeated until a context is full.
        document_mask: whether the model was trained to read each document of a row without the others.

    Raises:
        DataError: if a logit changed, with its position and the size of the change.
    """
    model.eval()
    T, V = model.cfg.max_seq_len, model.cfg.vocab_size
    device = model.tok_embeddings.weight.device
    row = torch.from_numpy(np.resize(tokens.astype(np.int64), T)).to(device)[None]
    other = (row + torch.randint(1, V, row.shape, generator=torch.Generator().manual_seed(seed)).to(device)) % V
    logits = model(row)[0]
    cuts = sorted({max(1, T * k // 8) for k in range(1, 8)})
    for cut in cuts:
        changed = torch.cat((row[:, :cut], other[:, cut:]), 1)
        _check_same(logits[:, :cut], model(changed)[0][:, :cut], f"tokens after position {cut} were changed")
    later_tokens = f"changing every token after {len(cuts)} places changed no logit before them"
    if not document_mask:
        not_masked = "not masked in training (train.document_mask): a row's documents see each other"
        return LeakProbe(later_tokens=later_tokens, other_documents=not_masked)
    half = T // 2
    segments = (torch.arange(T, device=device) >= half).long()[None]
    together = model(row, segments=segments)[0][:, half:]
    changed = torch.cat((other[:, :half], row[:, half:]), 1)
    changed_logits = model(changed, segments=segments)[0][:, half:]
    _check_same(together, changed_logits, "the document before it in the row was changed")
    return LeakProbe(later_tokens=later_tokens, other_documents="changing the other document of a row changed no logit")


def _check_same(a: Tensor, b: Tensor, what: str) -> None:
    gap = (a - b).abs().amax(-1)[0]
    if not float(gap.max()) <= TOLERANCE:
        at = int((~(gap <= TOLERANCE)).nonzero()[0])
        raise DataError(
            f"the model sees what it must not: logits at position {at} changed by {float(gap[at]):.3g} when {what}; "
            "its losses mean nothing. Look at the attention mask (foundry/models/components.py)"
        )
