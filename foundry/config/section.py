"""What all sections of the parameters share: the rules for every key, in addition to its own."""

from __future__ import annotations

import reprlib
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

DEPTH = 16  # more than the value of any key needs; an alias to itself is nested without end

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlong, _SHORT.maxlevel = 40, 3


def short_repr(value: Any) -> str:
    """A short `repr` for a message, whatever the value is (a list of aliases may have 10^9 items)."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def problem_of(value: Any, depth: int = DEPTH) -> str | None:
    """What makes a value impossible in every key; None if nothing does.

    Refused are an integer beyond 64 bits, text that UTF-8 cannot encode, a NUL character, and endless nesting.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"must fit 64 bits, got {short_repr(value)}"
    if isinstance(value, str):
        if "\0" in value:
            return f"must not contain NUL characters, got {short_repr(value)}"
        try:
            value.encode()
        except UnicodeEncodeError:
            return (
                f"contains half of a surrogate pair, which is no character, got {short_repr(value)}; "
                "write the character itself or \\U and eight digits"
            )
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if not depth:
            return f"is nested more than {DEPTH} levels deep"
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((found for part in parts if (found := problem_of(part, depth - 1))), None)
    return None


class Section(BaseModel):
    """A section of the parameters: immutable, strict about types, without unknown keys, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Runs before the key's own rules: pydantic cannot even report an integer of 4,301 digits."""
        inside = section_in(cls.model_fields[info.field_name].annotation) if info.field_name else None
        if inside is None and (problem := problem_of(value)):  # a section inside checks its own keys
            raise ValueError(problem)
        return value


def section_in(annotation: Any) -> type[Section] | None:
    """The section class of a field, or of the items of a field; None if it has none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_in(arg))), None)


def below(folder: str, value: str) -> str:
    """Returns a path or glob if it leads below the folder that the stage depends on: DVC watches nothing else.

    Raises:
        ValueError: if it does not; the message names the folder.
    """
    parts = PurePosixPath(value).parts
    if parts[:1] != (folder,) or ".." in parts:
        raise ValueError(
            f"must be below {folder}/ and relative to the project, got {short_repr(value)}: a change of a file "
            "elsewhere would not be noticed, and results would be stale. Move, copy or link the file into "
            f"{folder}/"
        )
    return value


CorpusPath = Annotated[str, AfterValidator(partial(below, "corpus"))]
TaskPath = Annotated[str, AfterValidator(partial(below, "tasks"))]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
