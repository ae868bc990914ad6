"""The files of `tutorials/`, loaded as modules, and folders that they read."""

import importlib.util
import shutil
import sys
from pathlib import Path

import torch

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"


def tutorial(name):
    """The module of a tutorial, without it being on the path."""
    spec = importlib.util.spec_from_file_location(f"tutorial_{name}", TUTORIALS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_folder(folder, model, tokenizer):
    """A package's model as `tutorials/train.py` writes one."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"config": model.cfg.model_dump(), "model": model.state_dict(), "step": 1}, folder / "model.pt")
    shutil.copy(tokenizer.path, folder / "tokenizer.model")
    return folder
