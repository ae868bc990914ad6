"""DVC notices every change of a file that a parameter names: any other path is refused before any work."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foundry.config import ConfigError, DataError, parse_config
from foundry.config.load import describe
from foundry.data.clean.decontaminate import Contamination
from foundry.data.clean.rules import BlockList
from foundry.data.fetch.download import download
from foundry.evaluation.questions import read_task_files
from foundry.utils.inputs import find_inputs, refuse_linked

GOOD = {"name": "a", "url": "file:corpus/*.txt"}
PINNED = {"name": "b", "url": "file:corpus/b", "sha256": "0" * 64}
KEYS = {
    "download.sources.0": ("corpus", lambda p: {"download": {"sources": [{**GOOD, "url": f"file:{p}"}]}}),
    "download.sources.1": (
        "corpus",
        lambda p: {"download": {"sources": [GOOD, {**PINNED, "mirrors": [f"file:{p}"]}]}},
    ),
    "clean.decontaminate": ("corpus", lambda p: {"clean": {"decontaminate": [p]}}),
    "clean.block_lists": ("corpus", lambda p: {"clean": {"block_lists": [p]}}),
    "tokenizer.reference": ("corpus", lambda p: {"tokenizer": {"reference": p}}),
    "chat.sources": ("corpus", lambda p: {"chat": {"sources": [p]}}),
    "chat.verifiers": ("corpus", lambda p: {"chat": {"verifiers": [p]}}),
    "preferences.sources": ("corpus", lambda p: {"preferences": {"sources": [p]}}),
    "preferences.feedback": ("corpus", lambda p: {"preferences": {"feedback": [p]}}),
    "evaluate.task_files": ("tasks", lambda p: {"evaluate": {"task_files": [p]}}),
}
OUTSIDE = ["/etc/*.txt", "../bad.txt", "bad.txt", "~/x.txt", "{}/../x.txt", "{}x/a.txt", "*/x.txt", "", "//home/x.txt"]


def parse(values):
    return parse_config({"download": {"sources": [GOOD]}} | values)


@pytest.mark.parametrize("key", KEYS)
def test_a_path_outside_the_watched_folder_is_refused_with_its_key_and_the_folder(key):
    folder, make = KEYS[key]
    for path in OUTSIDE:
        with pytest.raises(ConfigError) as e:
            parse(make(path.format(folder)))
        assert key in str(e.value) and f"below {folder}/" in str(e.value), path
    for path in (f"{folder}/x/**/*.txt", f"./{folder}/x.txt", f"{folder}/[ü] a.txt"):
        parse(make(path))


def test_no_other_parameter_names_a_file_that_is_read():
    """A new parameter that does so belongs in `KEYS`; its type is `CorpusPath` or `TaskPath`."""
    found = {p.key for p in describe() if re.search(r"\b(files?|paths?|globs?|folders?)\b", p.description.lower())}
    found -= {key for key in found if key.startswith("serving.")}  # no stage reads this section
    checked = {"download.sources[].url", "download.sources[].mirrors", *KEYS}
    mention_files = {
        *(f"download.sources[].{key}" for key in ("sha256", "member", "format", "cut", "encoding")),
        *(f"clean.{key}" for key in ("max_unpack_ratio", "max_unpacked_bytes", "max_bad_fraction")),
        *(f"{section}.{key}" for section in ("export", "chat_export") for key in ("model_name", "gguf_types")),
        *(f"runtime.{key}" for key in ("unit_bytes", "tensorboard", "profile")),
    }
    assert found - checked <= mention_files


@pytest.fixture
def linked(project):
    """A project whose corpus/ and tasks/ have a linked folder and a linked file each."""
    outside = project.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("deep/a.txt", "deep/b.jsonl", "c.txt"):
        (outside / name).write_text('{"text": "a"}\n')
    for folder in ("corpus", "tasks"):
        (project / folder).mkdir()
        (project / folder / "linked").symlink_to(outside / "deep")
        (project / folder / "c.txt").symlink_to(outside / "c.txt")
    return project


@pytest.mark.parametrize(
    "url", ["file:corpus", "file:corpus/**/*.txt", "file:corpus/linked", "file:corpus/linked/a.txt"]
)
def test_a_source_behind_a_linked_folder_is_refused(linked, url):
    with pytest.raises(DataError, match=r"corpus/linked.*DVC does not look into a linked folder"):
        download(
            parse_config({"download": {"sources": [{"name": "s", "url": url}]}}), Path("data/raw"), logging.getLogger()
        )


def test_other_inputs_behind_a_linked_folder_are_refused(linked):
    for work in (
        lambda: Contamination(["corpus/linked/*"], linked, 13),
        lambda: BlockList(["corpus/linked/a.txt"], linked),
        lambda: read_task_files(["tasks/**/*.jsonl"], linked),
        lambda: refuse_linked([Path("corpus/linked/r.model")], Path(), "tokenizer.reference"),
    ):
        with pytest.raises(ConfigError, match="DVC does not look into a linked folder"):
            work()


def test_a_linked_file_and_a_corpus_that_is_a_link_are_read(linked):
    (linked / "corpus/linked").unlink()
    shutil.move(linked / "corpus", linked.parent / "elsewhere")
    (linked / "corpus").symlink_to(linked.parent / "elsewhere")
    assert find_inputs("corpus/*.txt", Path(), "x") == [Path("corpus/c.txt")]
    manifest = download(
        parse_config({"download": {"sources": [{"name": "s", "url": "file:corpus"}]}}),
        Path("data/raw"),
        logging.getLogger(),
    )
    assert [f.path for f in manifest.sources[0].files] == ["s/c.txt"]


def test_what_is_accepted_is_what_dvc_notices(linked):
    """What DVC itself reports, which is the reason for the rule."""
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}

    def dvc(*words):
        done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    dvc("init", "-q", "--no-scm")
    Path("dvc.yaml").write_text("stages:\n  a:\n    cmd: touch out\n    deps: [corpus]\n    outs: [out]\n")
    dvc("repro", "-q")
    (linked.parent / "outside/deep/a.txt").write_text("another text behind the linked folder")
    assert "up to date" in dvc("status")
    (linked.parent / "outside/c.txt").write_text("another text behind the linked file")
    assert "modified" in dvc("status")


def test_a_name_that_is_not_utf8_is_named(project):
    (project / "corpus").mkdir()
    with open(os.fsencode(project) + b"/corpus/caf\xe9.txt", "w") as f:
        f.write("text")
    for url in ("file:corpus", "file:corpus/*.txt"):
        with pytest.raises(DataError, match=r"caf\\xe9\.txt' is not UTF-8; rename it"):
            download(
                parse_config({"download": {"sources": [{"name": "s", "url": url}]}}),
                Path("data/raw"),
                logging.getLogger(),
            )
