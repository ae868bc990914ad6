"""The base of records that one part of the project writes to disk and another reads: one schema for both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from foundry.config import FoundryError
from foundry.utils.files import read_json


class Record(BaseModel):
    """Immutable, strict about types, closed to unknown keys, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, path: str | Path, what: str, error: Callable[[str], Exception] = FoundryError) -> Self:
        """Reads a JSON file.

        Args:
            what: what the file contains and which command writes it, for the error.

        Raises:
            error: if the file is missing, is not readable JSON, or does not follow the schema; the message names the
                first key that is wrong.
        """
        value = read_json(path, what, error)
        try:
            return cls.model_validate(value)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise error(f"{path} does not follow its schema ({where}: {first['msg']}): {what}") from None
