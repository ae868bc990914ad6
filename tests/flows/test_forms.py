"""What a form may not do, names of runs, and the content of the webhook's call and of the logs of `make ui`."""

import json
from types import SimpleNamespace

import jinja2
import pytest
from pydantic import ValidationError

from flows import names, ui
from flows.backup import inside
from flows.deploy import PAYLOAD
from flows.names import MOST, is_generated, name_of_run
from flows.promote import Promote
from foundry.config import ConfigError


@pytest.mark.parametrize("folder", ["/etc/x", "../x", ".foundry/../../x", ".", "there/x"])
def test_a_backup_from_the_form_stays_inside_the_project(tmp_path, folder):
    home = tmp_path / "home"
    home.mkdir()
    (home / "there").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="not inside the project"):
        inside(home, folder)
    assert inside(home, ".foundry/backup") == home / ".foundry/backup"


@pytest.mark.parametrize("which", ["--force", "-x", "a b", "", "x\n", "../x"])
def test_a_version_is_no_option_of_the_command(which):
    with pytest.raises(ValidationError):
        Promote(which=which)
    assert Promote(which="3").which == "3" and Promote(which="best-of_2026").which == "best-of_2026"


def test_the_names_that_prefect_makes_are_distinguished_from_those_that_people_type():
    from prefect.utilities.names import generate_slug

    assert all(is_generated(generate_slug(2)) for _ in range(200))
    for name in ("alpha12-andromedae-anomaly", "beta-canis-majoris", "zeta7-lyrae"):  # of the run form
        assert is_generated(name)
    for name in ("baseline", "lr sweep", "my-run-3", "run-2", "Alpha-lyrae", "lr-0.002", "pretrain 735ba22"):
        assert not is_generated(name)


def test_a_typed_name_stays_and_ours_has_a_limit(monkeypatch):
    monkeypatch.setattr(names, "flow_run", SimpleNamespace(name="my own"))
    assert name_of_run("pretrain") == "my own"
    monkeypatch.setattr(names, "flow_run", SimpleNamespace(name="pink-iguana"))
    assert name_of_run("pretrain") == "pretrain"
    long = name_of_run("x" * 500)
    assert len(long) == MOST and long.endswith("…")


def test_the_webhooks_payload_is_json_whatever_the_names_are():
    hostile = 'a "quoted" name\n\\ {{ x }}'
    environment = jinja2.Environment()
    environment.filters["ui_url"] = lambda run: f"http://x/{run.name}"
    state = SimpleNamespace(name=hostile, message=None)
    text = environment.from_string(PAYLOAD).render(
        flow=SimpleNamespace(name=hostile), flow_run=SimpleNamespace(name=hostile, state=state)
    )
    payload = json.loads(text)
    assert payload["run"] == payload["flow"] == payload["state"] == hostile and payload["message"] is None
    assert payload["page"] == f"http://x/{hostile}"


def test_a_long_log_is_set_aside_and_its_writer_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(ui, "LOG_MOST", 100)
    served = ui.Ui(tmp_path, "http://p", "http://m", children={"worker": None})
    served.log("worker").parent.mkdir(parents=True)
    with open(served.log("worker"), "ab", buffering=0) as log:
        for i in range(3):
            log.write(b"%d" % i * 101)
            served.rotate_logs()
        log.write(b"short")
        served.rotate_logs()
    assert served.log("worker").read_bytes() == b"short"
    assert (tmp_path / ".foundry/ui/worker.log.1").read_bytes() == b"2" * 101
    assert len(list(served.log("worker").parent.iterdir())) == 2
