"""One reading of YAML: DVC, which decides what reruns, and Foundry, which does the work, see the same values."""

import pytest
from dvc.utils.serialize import load_yaml, loads_yaml

from foundry.config import ConfigError, load_params, parse_yaml, yaml_text

# Scalars that YAML 1.1 and 1.2, or one library and another, read differently.
SCALARS = """
010 0o10 0x1F 0b11 0777 09 1_000 1__0 _ 1_ +1 -0 1e3 1E3 1e-8 1.e3 .5 1. 1e 1.5e+3 6.02e23 1e400 .inf -.INF .nan yes
no on off y n Yes NO On true True TRUE false null Null ~ 12:30:00 1:2 1:2.5 190:20:30 2026-01-01 2026-01-01T10:00:00Z
0o9 0b12 0x '010' "1e3" !!str 010 !!int 010 !!float 1 = < 1,000 0.1.2 v1 @ x
""".split()  # noqa: SIM905 - a table to be read


@pytest.mark.parametrize("text", [*SCALARS, "2001-12-14 21:59:43.10 -5", "!!str 010", "!!float 3", "!!set {a, b}"])
@pytest.mark.parametrize("frame", ["key: {}", "key: [{}, 1]", "%YAML 1.1\n---\nkey: {}", "<<: {{key: {}}}", "{}: 1"])
def test_a_scalar_is_what_dvc_reads_or_an_error(frame, text):
    text = frame.format(text) + "\n"
    try:
        theirs = loads_yaml(text)
    except Exception:
        with pytest.raises(ConfigError, match=r"p\.yaml: .*not valid YAML"):
            parse_yaml(text, "p.yaml")
    else:
        ours = parse_yaml(text, "p.yaml")
        assert repr(ours) == repr(theirs)  # the types too, and NaN


@pytest.mark.parametrize(
    ("value", "read"),
    [("010", 10), ("0o10", 8), ("0x10", 16), ("1_0", 10), ("1e1", None), ("yes", None), ("1:0", None)],
)
def test_a_run_has_the_steps_that_dvc_records(tmp_path, value, read):
    path = tmp_path / "params.yaml"
    path.write_text(
        f"download: {{sources: [{{name: a, url: 'file:corpus/a'}}]}}\ntrain:\n  warmup_steps: 1\n  steps: {value}\n"
    )
    if read is None:
        with pytest.raises(ConfigError, match=r"train\.steps"):
            load_params(path)
    else:
        assert load_params(path).train.steps == read == load_yaml(path)["train"]["steps"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: {{lr}}", "line 1.*template.*not filled in"),
        ("a: 1\nday: 2026-13-45", "line 2.*'2026-13-45' cannot be read"),
        ("a: 1\nn: " + "9" * 5000, "line 2.*cannot be read"),
        ("n: !!int ten", "line 1.*'ten' cannot be read"),
        ("n: !!bool ten", "line 1.*'ten' cannot be read"),
        ("n: !!python/object/apply:os.getcwd []", "line 1.*constructor"),
        ('p: "\\ud83d\\ude00"', "line 1.*Unicode"),
        ("a: 1\n---\nb: 2", "line 2.*another document"),
        ("a: *b", "line 1.*alias"),
        ("a: [" + "[" * 30_000 + "]" * 30_000 + "]", "line 1.*nested too deeply"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_what_is_no_value_is_reported_with_its_line(text, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_yaml(text, "p.yaml")


def test_what_is_no_file_is_reported(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for path in (tmp_path, "a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_params(path)
    with pytest.raises(ConfigError, match="UTF-8"):
        load_params(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        load_params(tmp_path / "none")


def test_written_yaml_is_read_as_the_same_value_by_both():
    value = {
        "b": [*SCALARS, "2026-01-01", "on", "", " ", "a: b", "#", "é", "x\ny"],
        "a": {"1e3": 1, "n": None, "f": 0.5},
    }
    text = yaml_text(value)
    assert parse_yaml(text, "p") == loads_yaml(text) == value
    assert list(parse_yaml(text, "p")) == ["b", "a"]
