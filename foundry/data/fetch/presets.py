"""The corpora of `presets/`: what each one is, and its download without a project's parameters.

A preset is a YAML file with the sections of `params.yaml` that differ for its corpus; `presets/index.toml` has its
title and the size of its published files.
"""

from __future__ import annotations

import logging
import tomllib
from dataclasses import dataclass
from pathlib import Path

from foundry.config import ConfigError, Source, parse_config, read_yaml
from foundry.data.fetch.download import download
from foundry.data.fetch.sources import Local, parse_source
from foundry.utils.raw_manifest import Manifest

FOLDER = Path(__file__).resolve().parents[3] / "presets"


@dataclass(frozen=True)
class Preset:
    """A corpus that is ready to download.

    Attributes:
        path: of its YAML file.
        title: what the text is.
        sources: in the order of the mixture.
        bytes: of the published files; None if they are the user's own, or nobody knows.
        measured: whether a download of this project measured `bytes`; otherwise the publisher's page lists them.
    """

    path: Path
    title: str
    sources: tuple[Source, ...]
    bytes: int | None
    measured: bool

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def local(self) -> bool:
        """Whether it reads files of the user, so that there is nothing to download."""
        return any(isinstance(a, Local) for s in self.sources for a in parse_source(s))

    @property
    def pinned(self) -> bool:
        """Whether every file has its hash in the preset; otherwise `data.lock.json` records the first download."""
        return all(s.sha256 for s in self.sources)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.lang for s in self.sources))

    @property
    def licences(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.license for s in self.sources))


def read_presets(folder: Path = FOLDER) -> list[Preset]:
    """All presets, by name.

    Raises:
        ConfigError: if the folder is missing, or a file of it is damaged.
    """
    index = folder / "index.toml"
    try:
        known = tomllib.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{index} does not exist: the presets are part of the repository; install foundry from a clone of it "
            "(pip install -e)"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{index} is not valid TOML: {e}; restore it from git") from None
    found = []
    for path in sorted(folder.glob("*.yaml")):
        facts = known.get(path.stem)
        if facts is None:
            raise ConfigError(f"{index} has no section [{path.stem}]: add its title, and bytes and measured")
        sources = parse_config(read_yaml(path), str(path)).download.sources
        found.append(
            Preset(path, facts["title"], tuple(sources), facts.get("bytes"), bool(facts.get("measured", False)))
        )
    return found


def get_preset(preset: Preset, out: Path, log: logging.Logger) -> Manifest:
    """Downloads the files of a preset into a new folder, with a manifest of their hashes.

    The bytes stay in the store of the project (`.foundry/downloads`), so that the stage `download` does not transfer
    them again. A file without a hash in the preset is recorded in `data.lock.json`.

    Raises:
        ConfigError: if the folder exists, or the preset reads files of the user.
        UnreachableError: if the publisher could not be reached, so that a later retry may succeed.
        DataError: if a file is not what its hash says.
    """
    if preset.local:
        urls = ", ".join(s.url for s in preset.sources)
        raise ConfigError(
            f"the preset {preset.name} reads a file of yours ({urls}), so that there is nothing to download: save the "
            f"file there and copy the sections of {preset.path} into params.yaml"
        )
    if out.exists():
        raise ConfigError(f"{out} exists: remove it, or name another folder with --out")
    return download(parse_config(read_yaml(preset.path), str(preset.path)), out, log)
