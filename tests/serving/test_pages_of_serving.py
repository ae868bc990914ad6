"""The page on serving says what the code says: parameters with their defaults, metrics, keys of a recording."""

import re
from pathlib import Path

import pytest

from foundry.config import Serving, read_yaml
from foundry.serving.metrics import Metrics
from foundry.serving.recording import RecordedExchange, RecordedFeedback

ROOT = Path(__file__).parents[2]


def page(language):
    return (ROOT / f"docs/{language}/serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_has_every_parameter_with_its_default(language):
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \| ", page(language), re.MULTILINE))
    expected = {}
    for name, field in Serving.model_fields.items():
        value = field.get_default(call_default_factory=True)
        expected[name] = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    assert {name: rows[name] for name in expected} == expected


def test_the_english_table_has_the_descriptions_of_the_parameters():
    for name, field in Serving.model_fields.items():
        assert f"| `{name}` |" in page("en") and f"| {field.description} |" in page("en"), name


def test_params_yaml_has_the_defaults():
    assert read_yaml(ROOT / "params.yaml")["serving"] == Serving().model_dump()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_metric_is_on_the_page_and_no_other(language):
    text = Metrics(lambda: [], lambda: 0).text().decode()
    kinds = dict(re.findall(r"^# TYPE (foundry_\w+) (\w+)$", text, re.MULTILINE))
    exposed = {name for name in kinds if not name.endswith("_created")}
    assert len(exposed) > 15
    assert set(re.findall(r"`(foundry_[a-z_]+)`", page(language))) == exposed


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_schema_of_a_recording_is_on_the_page(language):
    words = set(re.findall(r"`(\w+)`", page(language)))
    assert words >= {*RecordedExchange.model_fields, *RecordedFeedback.model_fields}
