"""Names of runs: the one that a person typed, else one that says what the run does."""

import re

from coolname.data import config as _COOLNAME  # Prefect's own generator of names
from prefect.runtime import flow_run

MOST = 100  # characters; the UI's lists show about so many
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"
# The run form's own names: a letter with a number, a constellation, by chance another word.
STAR = re.compile(rf"({GREEK.replace(' ', '|')})\d*(-[a-z]+)+")


def is_generated(name: str) -> bool:
    """Whether Prefect made the name: its server with two words of the library coolname, its form in the manner of stars."""
    words = {word for part in _COOLNAME.values() for word in part.get("words", [])}
    parts = name.split("-")
    return bool(STAR.fullmatch(name)) or (len(parts) == 2 and words.issuperset(parts))


def name_of_run(ours: str) -> str:
    """For `flow_run_name`: the name that the run has, if somebody gave it; else ours, cut."""
    name = flow_run.name
    return name if name and not is_generated(name) else shortened(ours)


def squeezed(text: str, most: int = 600) -> str:
    """The beginning and the end of a long message: the first says what failed, the last why."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-most * 2 // 3 :]}"


def shortened(text: str, most: int = MOST) -> str:
    """The text, cut at its end with a mark."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
