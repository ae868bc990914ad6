"""The typed errors of the project.

A `FoundryError` is the user's to mend: its message says what is wrong, what was seen and what to do, and the commands
print it without a traceback. Everything else is a bug and keeps its traceback.
"""


class FoundryError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(FoundryError, ValueError):
    """A parameter is unknown, of a wrong type, or does not fit another one."""


class DataError(FoundryError):
    """Input data or a shard is missing, broken, empty or not what its hash says."""


class UnreachableError(DataError):
    """A publisher did not answer or broke off, again and again: a later retry may succeed. A stage that ends with it exits with 75."""


class CheckpointError(FoundryError):
    """A checkpoint is damaged, belongs to another run, or is locked by a living one."""


class ExportError(FoundryError):
    """The export does not equal its source model, or its files were changed."""


class TrackingError(FoundryError):
    """MLflow could not be reached or refused; the work itself is not affected."""
