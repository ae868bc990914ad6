"""The typed errors of the project.

A `FoundryError` is one that the user can fix: its message says what is wrong, what was seen and what to do, and the
commands print it without a traceback. Every other exception is a bug and keeps its traceback.
"""


class FoundryError(Exception):
    """Base of every error that a user can fix."""


class ConfigError(FoundryError, ValueError):
    """A parameter, or an argument of the Python interface, is unknown, has a wrong type, or does not fit another."""


class VocabularyError(ConfigError):
    """A vocabulary is larger than its training text allows.

    Attributes:
        asked: number of pieces that was asked for.
        largest: largest number of pieces that the text allows.
        size: bytes of the text.
    """

    def __init__(self, asked: int, largest: int, size: int) -> None:
        super().__init__(asked, largest, size)
        self.asked, self.largest, self.size = asked, largest, size

    def __str__(self) -> str:
        return (
            f"tokenizer.vocab_size ({self.asked}) is too large for {self.size:,} bytes of text: the largest possible "
            f"is {self.largest}"
        )


class MissingPackageError(ConfigError):
    """A package that an extra of foundry-lm installs is not installed, or cannot be imported.

    Attributes:
        package: its name.
        extra: the extra of pyproject.toml that installs it.
        reason: what Python reported; empty if the package is simply not there.
    """

    def __init__(self, package: str, extra: str, reason: str = "") -> None:
        super().__init__(package, extra, reason)
        self.package, self.extra, self.reason = package, extra, reason

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.package} is not installed{reason}: make setup extras={self.extra}, "
            f"or pip install 'foundry-lm[{self.extra}]' -c constraints.txt"
        )


class DataError(FoundryError):
    """Input data or a shard is missing, damaged or empty, or does not have its recorded hash."""


class UnreachableError(DataError):
    """A publisher repeatedly did not answer or broke the connection; a later retry may succeed.

    A stage that ends with this error exits with 75.
    """


class CheckpointError(FoundryError):
    """A checkpoint is damaged, or belongs to another run."""


class DiskError(FoundryError):
    """A write failed because of the disk: no space, or no permission. The old content is unchanged.

    Attributes:
        folder: the folder of the write.
        reason: the error of the system.
        free: bytes that are free there, after what was half written has been removed.
        needed: bytes that the write needs at least; None if that is not known.
    """

    def __init__(self, folder: str, reason: str, free: int, needed: int | None = None) -> None:
        super().__init__(folder, reason, free, needed)
        self.folder, self.reason, self.free, self.needed = folder, reason, free, needed

    def __str__(self) -> str:
        needed = "" if self.needed is None else f", at least {_mib(self.needed)} are needed"
        return (
            f"cannot write in {self.folder}: {self.reason}; {_mib(self.free)} are free there{needed}. "
            "Nothing was left half written; make room or fix the permissions, then run the same command again"
        )


def _mib(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB" if n >= 10 * 2**20 else f"{n / 2**20:,.2f} MiB"


class LockError(FoundryError):
    """Another living process does the same work.

    Attributes:
        pid: the number of that process, as it wrote it into the lock file; None if it wrote none.
        note: what else it wrote there.
    """

    def __init__(self, message: str, pid: int | None = None, note: str = "") -> None:
        super().__init__(message)
        self.pid, self.note = pid, note


class ExportError(FoundryError):
    """The export does not equal its source model, or its files were changed."""


class TrackingError(FoundryError):
    """MLflow could not be reached, or refused a request; the work itself is not affected."""
