"""Names of runs: the one that a person typed, or else one that says what the run does."""

import re

from coolname.data import config as _COOLNAME  # Prefect's own generator of names
from prefect.runtime import flow_run

MOST = 100  # characters; the UI's lists show about so many
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu "
    "nu xi omicron pi rho sigma tau upsilon phi chi psi omega"
)
# The names of the UI's run form: a Greek letter, often with a number, a constellation, sometimes another word.
STAR = re.compile(rf"({GREEK.replace(' ', '|')})\d*(-[a-z]+)+")


def is_generated(name: str) -> bool:
    """Whether Prefect made the name: its server from two words of the library coolname, its form from star names."""
    words = {word for part in _COOLNAME.values() for word in part.get("words", [])}
    parts = name.split("-")
    return bool(STAR.fullmatch(name)) or (len(parts) == 2 and words.issuperset(parts))


def name_of_run(ours: str) -> str:
    """For `flow_run_name`: the run's name if a person gave it; otherwise ours, shortened."""
    name = flow_run.name
    return name if name and not is_generated(name) else shortened(ours)


def short_run_id() -> str:
    """The first characters of the flow run's id: the name of its folder in `.foundry/runs/`."""
    return str(flow_run.id)[:8]


def squeezed(text: str, most: int = 600) -> str:
    """The beginning and the end of a long message: the beginning says what failed, the end says why."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-most * 2 // 3 :]}"


def shortened(text: str, most: int = MOST) -> str:
    """The text, cut at its end with an ellipsis."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
