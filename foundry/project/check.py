"""Problems that parameters cause beyond the rules of the parameter file. Behind `foundry check` and `foundry plan`.

They are found before any work: a problem ends a stage with an error, perhaps after days. A note says what the run will
do that its user may not expect, above all that the export will be refused. Nothing here computes or downloads, and
torch is not imported.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from foundry.config import Config, ConfigError, FoundryError, MissingPackageError
from foundry.config.load import listing
from foundry.utils.device import get_device


@dataclass(frozen=True)
class OptionalPackage:
    """A package that a parameter needs and that `pip install foundry-lm` does not install.

    Attributes:
        wanted: whether the parameters need it.
        extra: the extra of foundry-lm that installs it.
    """

    key: str
    wanted: Callable[[Config], bool]
    module: str
    extra: str


OPTIONAL = (
    OptionalPackage("runtime.executor", lambda cfg: cfg.runtime.executor == "ray", "ray", "ray"),
    OptionalPackage(
        "runtime.tensorboard", lambda cfg: cfg.runtime.tensorboard is not None, "tensorboard", "tensorboard"
    ),
    OptionalPackage("evaluate.harness", lambda cfg: bool(cfg.evaluate.harness), "lm_eval", "eval"),
)


@dataclass(frozen=True)
class Findings:
    """Sentences that name their parameters.

    Attributes:
        problems: each ends a stage with an error.
        export: why the trained model will not be exported; empty if the parameters allow an export.
        notes: what else the user should know before the run.
    """

    problems: list[str]
    export: list[str]
    notes: list[str]

    def lines(self) -> list[str]:
        """What does not prevent the run, for a person."""
        return [*(f"will not export: {reason}" for reason in self.export), *(f"note: {note}" for note in self.notes)]


def findings(cfg: Config, root: Path) -> Findings:
    """Finds everything that can be known of a run from its parameters and the files that they name.

    Args:
        root: the project's folder.
    """
    from foundry.export.exportable import export_problems

    return Findings(list(_problems(cfg, root)), export_problems(cfg), list(_notes(cfg, root)))


def checked(cfg: Config, root: Path, origin: str) -> Findings:
    """Like `findings`, for parameters without problems.

    Args:
        root: the project's folder.
        origin: names the parameters in the error.

    Raises:
        ConfigError: listing every problem.
    """
    found = findings(cfg, root)
    if found.problems:
        raise ConfigError(listing(origin, found.problems))
    return found


def _problems(cfg: Config, root: Path) -> Iterator[str]:
    for o in OPTIONAL:
        if o.wanted(cfg) and find_spec(o.module) is None:
            yield f"{o.key}: {MissingPackageError(o.module, o.extra)}"
    for call in _calls(cfg, root):
        try:
            call()
        except FoundryError as e:
            yield str(e)


def _calls(cfg: Config, root: Path) -> Iterator[Callable[[], object]]:
    """Calls of the readers of the stages, which raise what they would refuse."""
    from foundry.data.clean.decontaminate import Contamination
    from foundry.data.clean.rules import BlockList
    from foundry.data.fetch.sources import parse_source
    from foundry.data.read.template import Template
    from foundry.evaluation.questions import read_task_files
    from foundry.tracking import tracking_uri
    from foundry.utils.inputs import find_inputs

    for source in cfg.download.sources:
        yield lambda source=source: parse_source(source)
        yield lambda source=source: _named(source.name, lambda: Template(source.text))
    clean = cfg.clean
    yield lambda: Contamination(clean.decontaminate, root, clean.decontaminate_ngram)
    yield lambda: BlockList(clean.block_lists, root)
    if cfg.tokenizer.reference is not None:
        yield lambda: find_inputs(cfg.tokenizer.reference, root, "tokenizer.reference")
    for pattern in cfg.evaluate.task_files:
        yield lambda pattern=pattern: read_task_files([pattern], root)
    for key, patterns in (
        ("chat.sources", cfg.chat.sources),
        ("chat.verifiers", cfg.chat.verifiers),
        ("preferences.sources", cfg.preferences.sources),
        ("preferences.feedback", cfg.preferences.feedback),
    ):
        for pattern in patterns:
            yield lambda key=key, pattern=pattern: find_inputs(pattern, root, key)
    yield lambda: tracking_uri(cfg.runtime)


def _named(source: str, call: Callable[[], object]) -> None:
    try:
        call()
    except ConfigError as e:
        raise ConfigError(f"download.sources {source!r}: {e}") from None


def _notes(cfg: Config, root: Path) -> Iterator[str]:
    from foundry.export.exportable import chat_export_problems

    # Missing texts are not a problem: they may arrive before the run, and the parameters may be those of another
    # machine.
    for source in cfg.download.sources:
        pattern = source.url.removeprefix("file:")
        if pattern != source.url and not glob.glob(pattern, root_dir=root, recursive=True):
            yield f"download.sources {source.name!r}: file:{pattern} matches no file below {root.resolve()} now"
    if cfg.runtime.device not in ("auto", "cpu"):
        try:
            get_device(cfg.runtime.device)
        except ConfigError as e:
            yield f"runtime.device: {e}"
    for reason in chat_export_problems(cfg):
        yield f"the chat model will not be exported: {reason}"
    context = cfg.model.max_seq_len
    for i, prompt in enumerate(cfg.evaluate.prompts):
        if (size := len(prompt.encode())) >= context - 1:  # a token has one byte or more, and the begin symbol is one
            yield (
                f"evaluate.prompts[{i}] has {size} bytes: if these are {context} tokens or more (model.max_seq_len), "
                f"only its last {context // 2} tokens are read"
            )
    if not cfg.tokenizer.byte_fallback:
        yield "tokenizer.byte_fallback is false: characters that the vocabulary lacks are lost"
