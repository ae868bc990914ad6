"""Does the trained model look at what it must not see? A prediction that reads its own answer has any loss one likes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foundry.config import DataError
from foundry.models import MiniLLM

TOLERANCE = 1e-5  # of logits; the same shapes are computed the same way, so that nothing but zero is usual


@torch.inference_mode()
def probe_leaks(model: MiniLLM, tokens: np.ndarray, document_mask: bool, seed: int) -> dict[str, str]:
    """Changes tokens that a logit must not depend on.

    Args:
        tokens: of real text, repeated to a whole context.
        document_mask: whether the model was trained to read one document of a row without the others.

    Returns:
        {later_tokens, other_documents}: what was found, for the report.

    Raises:
        DataError: if a logit changed, with the place and by how much.
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
        _same(logits[:, :cut], model(changed)[0][:, :cut], f"tokens after position {cut} were changed")
    found = {"later_tokens": f"changing every token after {len(cuts)} places changed no logit before them"}
    if not document_mask:
        return {
            **found,
            "other_documents": "not masked in training (train.document_mask): a row's documents see each other",
        }
    half = T // 2
    segments = (torch.arange(T, device=device) >= half).long()[None]
    together = model(row, segments=segments)[0][:, half:]
    changed = torch.cat((other[:, :half], row[:, half:]), 1)
    _same(together, model(changed, segments=segments)[0][:, half:], "the document before it in the row was changed")
    return {**found, "other_documents": "changing the other document of a row changed no logit"}


def _same(a: Tensor, b: Tensor, why: str) -> None:
    gap = (a - b).abs().amax(-1)[0]
    if not float(gap.max()) <= TOLERANCE:
        at = int((~(gap <= TOLERANCE)).nonzero()[0])
        raise DataError(
            f"the model sees what it must not: logits at position {at} changed by {float(gap[at]):.3g} when {why}; "
            "its losses mean nothing. Look at the attention mask (foundry/models/components.py)"
        )
