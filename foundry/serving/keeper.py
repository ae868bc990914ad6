"""Loads the model of a server and replaces it when its address in the registry names another version.

A version that cannot be loaded is reported once, and the one before keeps serving; a registry that cannot be reached is
reported once, and again when it is back.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundry.config import ConfigError, ExportError, FoundryError, Serving
from foundry.export.manifest import verify_export
from foundry.serving.folders import Loaded, load_folder
from foundry.serving.models import Models
from foundry.serving.registry import ADDRESS, Registered, Registry
from foundry.serving.version import Version
from foundry.tracking.names import CONTENT
from foundry.utils.files import sha256_tree
from foundry.utils.log import get_logger

KEEPS = "The version that is loaded keeps serving"


@dataclass(frozen=True)
class Change:
    """What happened to the served model.

    Attributes:
        kind: `loaded` at the start, `replaced`, `refused` (a new version cannot serve), `away` (the registry cannot be
            reached), `back`.
        text: a sentence for the log.
        version: that serves from now on, for `loaded` and `replaced`.
    """

    kind: Literal["loaded", "replaced", "refused", "away", "back"]
    text: str
    version: Version | None = None


class Keeper:
    """Keeps the right version loaded, in a thread of its own.

    Args:
        source: a folder, or an address of the registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`).
        fallback: a folder that is served as long as the registry has no such version; None: that is an error.
        registry: is asked for addresses; None if the source is a folder.
        report: is called with every change, in the keeper's thread.
    """

    def __init__(
        self,
        models: Models,
        source: str,
        serving: Serving,
        device: str,
        report: Callable[[Change], None],
        registry: Registry | None = None,
        fallback: Path | None = None,
    ) -> None:
        self.models, self.source, self.fallback = models, source, fallback
        self._serving, self._device, self._registry, self._report = serving, device, registry, report
        self._known: str | None = None  # content hash of the version that serves, or that was refused
        self._serves: str | None = None  # content hash of the version that serves; None for a folder
        self._away: str | None = None  # why the last look at the registry failed, so that it is reported once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def load(self) -> Version:
        """Loads the first version.

        Raises:
            FoundryError: if that is not possible.
        """
        if not self.source.startswith(ADDRESS):
            return self._serve(load_folder(Path(self.source), self._serving, self._device, Path(self.source).name))
        threading.Thread(target=_preload, name="preload", daemon=True).start()
        try:
            found = self._look()
            return self._replace(found) if found else self.models.versions()[0]
        except ConfigError as e:
            if self.fallback is None:
                raise
            get_logger().info("%s; serving %s until there is one", str(e).partition(";")[0], self.fallback)
            self._away = str(e)
            name = self.fallback.resolve().name
            return self._serve(load_folder(self.fallback, self._serving, self._device, name))

    def start(self) -> None:
        """Begins to watch the registry; does nothing for a folder or a fixed version."""
        if self._registry and "@" in self.source and self._serving.poll_seconds:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread; a version that is being loaded is given up."""
        self._stop.set()
        if self._registry:
            self._registry.close()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _watch(self) -> None:
        while not self._stop.wait(self._serving.poll_seconds):
            try:
                found = self._look()
            except FoundryError as e:
                if self._away != str(e) and not self._stop.is_set():
                    self._report(Change("away", f"{e}. {KEEPS}"))
                self._away = str(e)
                continue
            if self._away is not None:
                self._away = None
                self._report(Change("back", f"the registry answers for {self.source} again"))
            if found is None:
                continue
            try:
                self._replace(found)
            except FoundryError as e:
                self._report(Change("refused", f"{e}. {KEEPS}"))
            except Exception as e:  # a bug must not end the watch
                get_logger().exception("version %s of %s cannot be loaded", found[0].version, found[0].name)
                self._report(Change("refused", f"{type(e).__name__}: {e}. {KEEPS}"))

    def _look(self) -> tuple[Registered, Path] | None:
        """What the address names now, with a temporary folder of its files; None if it is what is known."""
        if self._registry is None:
            raise ConfigError(f"{self.source} is an address of the registry, and tracking is off")
        into = Path(tempfile.mkdtemp(prefix="foundry-serve-"))
        try:
            found = self._registry.find(self.source, into, self._known)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        self._known = found.content  # it is fetched once, whatever comes of it
        if found.folder is None or found.content == self._serves:
            shutil.rmtree(into, ignore_errors=True)
            return None
        return found, into

    def _replace(self, looked: tuple[Registered, Path]) -> Version:
        found, into = looked
        folder, where = Path(found.folder or into), f"version {found.version} of {found.name}"
        try:
            if sha256_tree(folder) != found.content:
                verify_export(folder)  # names the file if one was damaged
                raise ExportError(
                    f"{where}: its files in MLflow's store are not those that were registered (tag {CONTENT}): "
                    "somebody replaced them. Restore the store from a backup"
                )
            loaded = load_folder(folder, self._serving, self._device, self.source, found.version)
            version = self._serve(loaded, found, lambda: shutil.rmtree(into, ignore_errors=True))
        except BaseException as e:
            shutil.rmtree(into, ignore_errors=True)
            if isinstance(e, FoundryError):
                raise FoundryError(f"{where} cannot be served: {e}") from e
            raise
        self._serves = found.content
        return version

    def _serve(
        self, loaded: Loaded, found: Registered | None = None, release: Callable[[], None] = lambda: None
    ) -> Version:
        before = next(iter(self.models.versions()), None)
        aliases: tuple[str, ...] = ()
        if found:
            aliases = (self.source, f"{ADDRESS}{found.name}/{found.version}", f"{found.name}/{found.version}")
        version = self.models.serve(loaded, tuple(dict.fromkeys(aliases)), release)
        text = described(version)
        if before:
            self._report(Change("replaced", f"{text} takes new requests; before: {described(before)}", version))
        else:
            self._report(Change("loaded", text, version))
        return version


def _preload() -> None:
    """Imports what loading a model needs, while the registry is asked."""
    import foundry.export.huggingface
    import foundry.inference.engine
    import foundry.inference.formats
    import foundry.inference.worker  # noqa: F401


def described(version: Version) -> str:
    """A version in a few words."""
    number = f" version {version.facts.version}" if version.facts.version else ""
    return f"{version.name}{number} (weights {version.facts.weights_sha256[:12]}, {version.facts.weights})"
