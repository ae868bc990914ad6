"""Loading a model from any folder that contains one: joins trained models and exports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foundry.models import MiniLLM
    from foundry.tokenizers import Tokenizer


def load_model_and_tokenizer(folder: Path, tokenizer: str | Path) -> tuple[MiniLLM, Tokenizer]:
    """Loads a trained model with the given tokenizer, or an export with the tokenizer that it contains.

    Args:
        folder: of a trained model, of an export, or the folder `hf` of an export.
        tokenizer: folder of the trained model's tokenizer; not used for an export.

    Raises:
        FoundryError: if a file is missing or damaged.
    """
    from foundry.models import load_model
    from foundry.tokenizers import Tokenizer

    for hf in (folder, folder / "hf"):
        if os.path.isfile(hf / "tokenizer.model"):  # False for an impossible file name, where Path.is_file raises
            from foundry.export.huggingface import import_huggingface

            return import_huggingface(hf)
    return load_model(folder), Tokenizer(tokenizer)
