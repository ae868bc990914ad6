"""How a program ends: errors become messages and exit codes. Of `foundry` and of the programs in `scripts/`."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from foundry.config import FoundryError
from foundry.utils.extras import missing_package

LONGEST = 6000  # characters of an error: an argument may have 100,000, and is often repeated in it


def show_every_character() -> None:
    """A file's name need not be UTF-8, and a terminal need not know every character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Runs the block.

    Raises:
        SystemExit: 1 for a user's mistake and for a missing package, 130 after Ctrl-C. Other errors are bugs, and pass.
    """
    try:
        yield
    except FoundryError as e:
        text = str(e)
        print(f"error: {text if len(text) <= LONGEST else f'{text[:LONGEST]} …'}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as e:
        if (missing := missing_package(e)) is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `foundry check --describe | head`
        sys.stderr.close()
        raise SystemExit(1) from None
