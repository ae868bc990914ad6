"""A real MLflow server that is away, slow or broken, or whose answers are lost.

Every point arrives once and in order, and training does not wait.
"""

import json
import time

import pytest
from tracking_servers import MlflowServer, Proxy, history, tracker, wait_for

from foundry.config import TrackingError
from foundry.tracking import sync
from foundry.tracking.spool import Spool

pytestmark = pytest.mark.slow  # the server takes seconds to start


@pytest.fixture(scope="module")
def server(root):
    server = MlflowServer(root).start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.uri)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("foundry.tracking.run.LONGEST_PAUSE", 1.0)
    monkeypatch.setattr("foundry.tracking.run.PERIOD", 0.2)


def delivered_steps(proxy):
    """Steps of `loss`, in the order in which they reached the server."""
    bodies = [json.loads(body) for path, body in proxy.done if path.endswith("/runs/log-batch")]
    return [m["step"] for b in bodies for m in b.get("metrics", []) if m["key"] == "loss"]


def points_of(n):
    return [(s, float(s)) for s in range(n)]


def test_a_slow_server_holds_nothing_up_and_gets_all_in_order(root, server, proxy):
    proxy.mode = "slow"
    with tracker(root / ".foundry/slow/train/one", proxy.uri, "slow") as t:
        for step in range(2000):
            t.log(step, {"loss": float(step)})
        assert not delivered_steps(proxy)  # all are logged before the first answer
    assert delivered_steps(proxy) == list(range(2000))
    run, points = history(server.uri, "slow")
    assert points == points_of(2000) and run.info.status == "FINISHED"


def test_a_server_that_answers_500_gets_all_when_it_works_again(root, server, proxy):
    proxy.mode = "500"
    with tracker(root / ".foundry/broken/train/one", proxy.uri, "broken") as t:
        for step in range(100):
            t.log(step, {"loss": float(step)})
            if step == 50:
                wait_for(lambda: proxy.refused >= 2)
                proxy.mode = "pass"
    assert delivered_steps(proxy) == list(range(100))
    run, points = history(server.uri, "broken")
    assert points == points_of(100) and run.info.status == "FINISHED"


def test_answers_that_are_lost_make_neither_a_second_run_nor_a_second_point(root, server, proxy):
    """The server executes every request, but the first answer of each kind is lost."""
    proxy.mode = "lost"
    folder = root / ".foundry/lost/train/one"
    with tracker(folder, proxy.uri, "lost", params={"train": {"lr": 0.1, "steps": 5}}) as t:
        for step in range(40):
            t.log(step, {"loss": float(step)})
        wait_for(lambda: not Spool(folder).pending(1).points)
    assert {k.rpartition("/runs/")[2] for k in proxy.lost} >= {"create", "log-batch", "log-inputs", "update"}
    run, points = history(server.uri, "lost")  # one run
    assert points == points_of(40) and run.data.params == {"train.lr": "0.1", "train.steps": "5"}
    assert len(run.inputs.dataset_inputs) == 1
    sync(root / ".foundry/lost")
    assert history(server.uri, "lost")[0].info.status == "FINISHED"


def test_the_next_run_delivers_what_a_former_one_could_not(root, server, proxy):
    runs = root / ".foundry/next/train"
    proxy.mode = "500"
    with tracker(runs / "first", proxy.uri, "first") as t:
        for step in range(60):
            t.log(step, {"loss": float(step)})
        wait_for(lambda: proxy.refused)
    assert not (runs / "first/delivered").exists()
    with pytest.raises(TrackingError, match="too many 500 error responses"):
        sync(root / ".foundry/next")
    proxy.mode = "pass"
    with tracker(runs / "second", proxy.uri, "second") as t:
        t.log(0, {"loss": 0.0})
    assert (runs / "first/delivered").read_text() == "FINISHED"
    run, points = history(server.uri, "first")
    assert points == points_of(60) and run.info.status == "FINISHED"
    asked = len(proxy.done)
    assert (
        sync(root / ".foundry/next") == 0 and len(proxy.done) == asked
    )  # no request for what was delivered completely


def test_a_server_that_is_killed_in_the_middle_and_started_again_loses_no_point(root, server):
    with tracker(root / ".foundry/outage/train/one", server.uri, "outage") as t:
        for step in range(120):
            t.log(step, {"loss": float(step)})
            time.sleep(0.02)
            if step == 60:
                server.kill()
            if step == 90:
                server.start()
    run, points = history(server.uri, "outage")
    assert points == points_of(120) and run.info.status == "FINISHED"
