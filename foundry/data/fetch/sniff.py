"""Is a file what its name says? Its first bytes are checked before it enters `data/raw`.

Guards against what servers send in place of data: an error page, a log-in page, an archive that the transfer
decompressed or packed again. Only the outermost layer is checked; damage further inside is found by the readers.
"""

from __future__ import annotations

from pathlib import Path

from foundry.config import DataError
from foundry.data.read.kinds import HEAD, OPENED, begins_as, binary_kind, has_magic, is_page, outer_kind, suffix_of


def check_kind(path: Path, name: str, format: str) -> None:
    """Compares the first bytes of a file with what its name and the format of its source promise.

    Args:
        name: the published name; `path` may have another.
        format: `Source.format`; it decides for files that are neither compressed nor an archive.

    Raises:
        DataError: naming what was promised and what came.
    """
    promised = outer_kind(name)
    if format != "auto" and promised not in OPENED:
        promised, why = format, f"format: {format}"
    else:
        why = f"its name ends in {suffix_of(name)}"
    if promised is None:
        return
    with open(path, "rb") as f:
        head = f.read(HEAD)
    kind, page = binary_kind(head), is_page(head)
    if has_magic(promised):
        wrong = not begins_as(head, promised)
    else:
        wrong = kind is not None or (page and promised != "html")
    if wrong:
        seen = f"{kind} data" if kind else "an HTML page" if page else "something else" if head else "nothing"
        raise DataError(
            f"{name} is not what it should be: {promised} is expected ({why}), but it contains {seen}: "
            f"it begins with {head[:24]!r}. Check the address in a browser, or set `format:`"
        )
