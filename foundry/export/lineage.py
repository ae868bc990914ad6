"""`lineage.json` of an export: every link from the weights back to the raw bytes, by hashes, with the parameters.

It contains only what is a function of the pipeline's inputs, so it is the same bytes on every build: no clock, no path
of this machine, no commit. Imports no torch and reads only the project's files, so that `foundry trace` needs nothing
but the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from foundry.config import DataError, ExportError
from foundry.utils.files import sha256_file, sha256_json
from foundry.utils.raw_manifest import NAME as MANIFEST
from foundry.utils.raw_manifest import read_manifest
from foundry.utils.records import Record

if TYPE_CHECKING:  # loads torch
    from foundry.models import ModelFacts

NAME = "lineage.json"
# Where the files of a link are in the project; of the reports, the lineage names those that the export reads.
FOLDERS = {
    "raw": "data/raw",
    "clean": "data/clean",
    "tokenizer": "artifacts/tokenizer",
    "shards": "data/shards",
    "model": "artifacts/model",
    "evaluation": "artifacts/evaluation",
    "reports": "reports",
}
REPORTS = ("clean.json", "evaluate.json")
# Those of post-training; a lineage names the ones that its model was made of.
CHAT_FOLDERS = {
    "fields": "data/fields",
    "chat data": "data/chat",
    "sft": "artifacts/chat/sft",
    "dpo": "artifacts/chat/dpo",
    "rl": "artifacts/chat/rl",
    "answers": "artifacts/chat/evaluation",
    "aligned answers": "artifacts/chat/aligned_evaluation",
}


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("a path outside its folder")
    return name


Inside = Annotated[str, AfterValidator(_inside)]
Files = dict[Inside, str]  # {path in the link's folder: sha256}


class ModelLink(Record):
    """The trained model: steps and tokens of its training, the hash of its weights, the fingerprint of its run."""

    weights_sha256: str
    fingerprint: str
    steps: int
    tokens: int
    files: Files


class FilesLink(Record):
    files: Files


class ShardsLink(Record):
    index_sha256: str
    files: Files


class HashedLink(Record):
    """Files with one hash over all of them."""

    sha256: str
    files: Files


class RawFile(Record):
    path: Inside
    sha256: str
    bytes: int


class RawLink(Record):
    """A source of text; `sha256` is over its list of files."""

    name: str
    url: str
    license: str
    attribution: str
    lang: str
    files: list[RawFile]
    sha256: str


class TrainedLink(Record):
    """A training of the chain from the base model to the exported one, see `ModelLink`.

    Attributes:
        stage: sft, dpo or rl.
        parent_sha256: the weights that it began with.
    """

    stage: str
    weights_sha256: str
    parent_sha256: str
    fingerprint: str
    steps: int
    tokens: int


class ChatLink(Record):
    """From the base model to a model that answers.

    Attributes:
        trainings: from the base model up to the exported model.
        data_sha256: of the chat data, which each training was given.
        template_sha256: of the chat template.
        verifier_version: of the programs that judged answers.
        folders: {link, a key of `CHAT_FOLDERS`: its files}.
        parameters: identity parameters of post-training: `Config.post_training`.
    """

    trainings: list[TrainedLink]
    data_sha256: str
    template_sha256: str
    verifier_version: int
    folders: dict[str, Files]
    parameters: dict[str, Any]


class Lineage(Record):
    """The content of `lineage.json`; the order of the fields is the order of its keys.

    Attributes:
        model: the base model.
        parameters: identity parameters: `Config.identity`.
        chat: of a model that was trained to answer; a base model's lineage has no such key.
    """

    model: ModelLink
    evaluation: FilesLink
    reports: FilesLink
    shards: ShardsLink
    tokenizer: HashedLink
    clean: HashedLink
    raw: list[RawLink]
    raw_manifest_sha256: str
    raw_sha256: str
    parameters: dict[str, Any]
    chat: ChatLink | None = None


@dataclass(frozen=True)
class LinkedFile:
    """A file of the project that a lineage names.

    Attributes:
        link: a key of `FOLDERS` or `CHAT_FOLDERS`.
        path: in the project.
    """

    link: str
    path: str
    sha256: str


def build_lineage(
    root: str | Path, facts: ModelFacts, parameters: dict[str, Any], shard_files: dict[str, str]
) -> Lineage:
    """The lineage of the project at `root`: every file that a number of the export depends on, with its hash.

    Args:
        facts: `config.json` of the trained model.
        parameters: identity parameters: `Config.identity`.
        shard_files: {path in `data/shards`: sha256} of the index; the readers of the shards compared them.

    Raises:
        DataError: if the manifest of the raw files or a report is missing.
    """
    root = Path(root)
    raw = root / FOLDERS["raw"]
    keys = {"name", "url", "license", "attribution", "lang", "files"}
    sources = [
        {**s, "files": list(s["files"]), "sha256": sha256_json(s["files"])}
        for s in (source.model_dump(include=keys) for source in read_manifest(raw).sources)
    ]
    clean = file_hashes(root / FOLDERS["clean"])
    reports = {name: root / FOLDERS["reports"] / name for name in REPORTS}
    if lost := [str(path) for path in reports.values() if not path.is_file()]:
        raise DataError(f"{', '.join(lost)} is missing; run `dvc repro evaluate`")
    return Lineage(
        model=ModelLink(
            **{k: getattr(facts, k) for k in ("weights_sha256", "fingerprint", "steps", "tokens")},
            files=file_hashes(root / FOLDERS["model"], {"model.safetensors": facts.weights_sha256}),
        ),
        evaluation=FilesLink(files=file_hashes(root / FOLDERS["evaluation"])),
        reports=FilesLink(files={name: sha256_file(path) for name, path in reports.items()}),
        shards=ShardsLink(index_sha256=facts.index_sha256, files=file_hashes(root / FOLDERS["shards"], shard_files)),
        tokenizer=HashedLink(sha256=facts.tokenizer_sha256, files=file_hashes(root / FOLDERS["tokenizer"])),
        clean=HashedLink(sha256=sha256_json(clean), files=clean),
        raw=[RawLink.model_validate(s) for s in sources],
        raw_manifest_sha256=sha256_file(raw / MANIFEST),
        raw_sha256=sha256_json([s["sha256"] for s in sources]),
        parameters=parameters,
    )


def read_lineage(folder: str | Path) -> Lineage:
    """The lineage of an export.

    Raises:
        ExportError: if the folder has none, it is damaged, or another version of Foundry wrote it; the message names
            the file and what is wrong in it.
    """
    what = (
        "the lineage of an export; `foundry verify --repair` restores a damaged one, `dvc repro export` writes it again"
    )
    return Lineage.read(Path(folder) / NAME, what, ExportError)


def linked_files(lineage: Lineage) -> Iterator[LinkedFile]:
    """Every file of the project that the lineage names."""
    for link, folder in FOLDERS.items():
        if link == "raw":
            yield LinkedFile(link, f"{folder}/{MANIFEST}", lineage.raw_manifest_sha256)
            for f in (f for source in lineage.raw for f in source.files):
                yield LinkedFile(link, f"{folder}/{f.path}", f.sha256)
        else:
            for name, digest in getattr(lineage, link).files.items():
                yield LinkedFile(link, f"{folder}/{name}", digest)
    for link, files in lineage.chat.folders.items() if lineage.chat else ():
        for name, digest in files.items():
            yield LinkedFile(link, f"{CHAT_FOLDERS[link]}/{name}", digest)


def complete_folders(lineage: Lineage) -> dict[str, str]:
    """{link: its folder in the project} of the folders whose every file a lineage names."""
    chat = lineage.chat.folders if lineage.chat else {}
    return {
        **{link: folder for link, folder in FOLDERS.items() if link != "reports"},
        **{link: CHAT_FOLDERS[link] for link in chat},
    }


def extended(base: Lineage, chat: ChatLink) -> Lineage:
    """The lineage of a chat model, from that of the export of its base model.

    Raises:
        ExportError: if the chain does not begin with that base model.
    """
    first = chat.trainings[0].parent_sha256
    if base.model.weights_sha256 != first:
        raise ExportError(
            f"artifacts/export is of the model with weights {base.model.weights_sha256[:12]}…, and the chat model "
            f"began with {first[:12]}…: run `make repro`, then `make chat`"
        )
    return base.model_copy(update={"chat": chat})


def file_hashes(folder: Path, known: dict[str, str] | None = None) -> dict[str, str]:
    """{path in the folder: sha256}; the hash of a file in `known` is taken from there."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: (known or {}).get(name) or sha256_file(folder / name) for name in names}
