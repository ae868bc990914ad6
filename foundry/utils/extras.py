"""Which extra of pyproject.toml installs a package that cannot be imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

from foundry.config import MissingPackageError

DISTRIBUTIONS = {"mlflow": "mlflow-skinny", "pynvml": "nvidia-ml-py"}  # modules that are not called like their package
REQUIREMENT = re.compile(r"""([\w.-]+).*;.*\bextra == ['"]([\w-]+)['"]""")


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """The error for a user if an extra installs the module that was not found; None if none does: that is a bug."""
    module = (error.name or "").partition(".")[0]
    wanted = _plain(DISTRIBUTIONS.get(module, module))
    try:
        found = [m.groups() for line in requires("foundry-lm") or () if (m := REQUIREMENT.match(line))]
    except PackageNotFoundError:  # run from a folder that is not installed
        return None
    return next((MissingPackageError(module, extra) for name, extra in found if _plain(name) == wanted), None)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
