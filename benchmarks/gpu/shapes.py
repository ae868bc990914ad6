"""Shapes and data of the measurements: the GPU profiles, and tiny ones that a CPU goes through in seconds."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import yaml

from benchmarks.gpu.child import ROOT
from benchmarks.throughput import make_data
from foundry.config import Config
from foundry.config.load import parse_config

PROFILES = ("gpu-124m", "gpu-1b")
TINY = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128, "max_seq_len": 64, "vocab_size": 4096}
TINY_TOKENS = 1024  # of a step
DOCUMENTS = 6000  # of 200 random words: more tokens than a step of `gpu-1b` has


def profiles(tiny: bool) -> tuple[str, ...]:
    """The profiles that are measured; with tiny shapes both would be the same."""
    return PROFILES[:1] if tiny else PROFILES


def _profile_config(profile: str) -> Config:
    """What `foundry.config.profiles.profile_config` gives, read by PyYAML: a bare machine has no ruamel.yaml."""
    values = yaml.safe_load((ROOT / "foundry" / "config" / "profiles.yaml").read_text(encoding="utf-8"))[profile]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in values.items():
        section, _, field = key.partition(".")
        params.setdefault(section, {})[field] = value
    return parse_config(params, f"profile {profile}")


def shape(profile: str, tiny: bool) -> Config:
    """The configuration of a profile; tiny: with the tiny model and a tiny step in its place."""
    cfg = _profile_config(profile)
    if not tiny:
        return cfg
    train = cfg.train.model_copy(update={"tokens_per_step": TINY_TOKENS})
    return cfg.model_copy(update={"model": cfg.model.model_copy(update=TINY), "train": train})


def work_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder where the disk has most room: a trainer refuses to begin where no checkpoint fits."""
    places = [Path(tempfile.gettempdir()), Path.cwd()]
    return tempfile.TemporaryDirectory(dir=max(places, key=lambda p: shutil.disk_usage(p).free), prefix=".gpu-")


def write_data(folder: Path, tiny: bool) -> None:
    """Shards of random words in `folder/<profile>/shards`, and the same tokens in `folder/tokens.bin`.

    The tokenizer has 4,096 pieces. A profile's shards say that they have as many as its model: their ids are valid
    there, and what a step costs does not depend on which ids it reads.
    """
    cfg = _profile_config("laptop")
    source = folder / "source"
    source.mkdir(parents=True)
    make_data(cfg, source, 600 if tiny else DOCUMENTS)
    (source / "tokens.bin").rename(folder / "tokens.bin")
    for profile in profiles(tiny):
        there = folder / profile / "shards"
        shutil.copytree(source / "shards", there)
        index = json.loads((there / "index.json").read_text())
        index["vocab_size"] = shape(profile, tiny).model.vocab_size
        (there / "index.json").write_text(json.dumps(index))
