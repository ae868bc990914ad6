"""Hugging Face, GGUF, model card, parity proofs."""

from typing import Any

_HOME = {
    "export": "bundle",
    "export_gguf": "gguf_file",
    "export_huggingface": "huggingface",
    "import_huggingface": "huggingface",
    "prove": "parity",
    "push": "hub",
    "verify_export": "manifest",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'foundry.export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"foundry.export.{_HOME[name]}"), name)
