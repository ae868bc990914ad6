"""Searches return everything, however little the server returns at once; every tag is spelt in one place."""

import re
from pathlib import Path

from foundry.tracking.listing import mlflow_rows
from foundry.tracking.names import FINGERPRINT
from foundry.tracking.search import every_logged_model, every_model, every_run, every_version
from foundry.tracking.seeds import seed_scores
from foundry.tracking.settings import connect, experiment_id

ROOM = Path(__file__).resolve().parents[2] / "foundry/tracking"


def test_no_search_stops_at_a_page(uri, monkeypatch):
    client = connect(uri)
    where = experiment_id(client, uri, "pages")
    for i in range(5):
        run = client.create_run(where, tags={FINGERPRINT: f"p{i}"}).info.run_id
        client.log_param(run, "seed", i)
        client.log_metric(run, "test_bits_per_byte", 1.0 + i)
        client.create_registered_model(f"pages-{i}")
        client.create_model_version("pages-0", "s3://nowhere/model", await_creation_for=0)
        client.create_logged_model(where, f"logged-{i}", run, {"tag": "same"})
    monkeypatch.setattr("foundry.tracking.search.PAGE", 2)
    monkeypatch.setattr("foundry.tracking.search.LOGGED_MODELS", 2)
    assert {m.name for m in every_logged_model(client, where, "tag", "same")} == {f"logged-{i}" for i in range(5)}
    assert [r.data.tags[FINGERPRINT] for r in every_run(client, where)] == ["p4", "p3", "p2", "p1", "p0"]
    assert len(list(every_run(client, where, f"tags.`{FINGERPRINT}` = 'p1'"))) == 1
    assert sorted(int(v.version) for v in every_version(client, "pages-0")) == [1, 2, 3, 4, 5]
    assert {f"pages-{i}" for i in range(5)} <= {m.name for m in every_model(client)}
    assert len(mlflow_rows(uri, "pages")) == 5 and sorted(seed_scores(uri, "pages")) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_every_tag_is_spelt_once():
    spelt = re.findall(r'"([a-z]+\.[\w.]+)"', (ROOM / "names.py").read_text(encoding="utf-8"))
    assert len(spelt) == len(set(spelt)) > 15
    for path in (*ROOM.glob("*.py"), *ROOM.parent.glob("project/*.py")):
        if path.name != "names.py":
            text = path.read_text(encoding="utf-8")
            assert not re.findall(r"""["']foundry\.[a-z_]+""", text) and not [
                tag for tag in spelt if f'"{tag}"' in text
            ], path
