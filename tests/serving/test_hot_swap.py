"""A promotion replaces the served model without a dropped request; a version that cannot serve changes nothing."""

import gc
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from served_process import make_export, make_version, serving, tiny_model, write_params
from small_server import wait_for

from foundry.config import ConfigError, ExportError, FoundryError, Serving, TrackingError
from foundry.inference import Generator
from foundry.serving.errors import ApiError
from foundry.serving.folders import load_folder
from foundry.serving.keeper import Keeper
from foundry.serving.models import Models
from foundry.serving.registry import Registered, Registry
from foundry.tracking.settings import connect
from foundry.utils.files import sha256_tree

PROMPTS = ["The salt", "Boil", "A river and", "Water"]


def ask(i):
    return {"prompt": PROMPTS[i % 4], "max_tokens": 12, "temperature": 0.9, "seed": i % 4, "stream": False}


@pytest.fixture(scope="module")
def registry(tokenizer, tmp_path_factory):
    """A project with a store of its own: versions 1 and 2 are good, 3 gives no finite logits, 4 has a damaged file."""
    root = tmp_path_factory.mktemp("project") / "Größe 模型"
    (root / ".foundry").mkdir(parents=True)
    uri = f"sqlite:///{root}/.foundry/mlflow.db"
    hashes = {}
    for number in (1, 2, 3, 4):
        model = tiny_model(number)
        if number == 3:
            with torch.no_grad():
                model.norm.weight.fill_(1e38)  # every number is finite, its logits are not
        source = root / f"versions/{number}"
        hashes[str(number)] = make_export(source / "artifacts/export", model, tokenizer)
        assert make_version(uri, source) == str(number)
    weights = root / "versions/4/artifacts/export/hf/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    connect(uri).set_registered_model_alias("tiny", "champion", "1")
    write_params(root, poll_seconds=0.2)
    return root, uri, hashes


def test_a_promotion_under_load_drops_no_request_and_every_answer_is_of_the_weights_it_names(registry, tokenizer):
    root, uri, hashes = registry
    client = connect(uri)
    answers, errors, done = [], [], threading.Event()
    with serving(root) as served:  # the champion of this project is the default
        assert "version 1 from models:/tiny@champion" in served.log

        def load(first):
            i = first
            while not done.is_set():
                reply = served.call("/v1/completions", ask(i))
                if reply.status != 200:
                    errors.append(reply)
                    return
                answers.append((i % 4, reply.headers["x-foundry-model"], reply.json["choices"][0]["text"]))
                i += 1

        threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) > 20)
        client.set_registered_model_alias("tiny", "champion", "2")
        wait_for(lambda: answers[-1][1] == hashes["2"] or errors, 60)
        seen = len(answers)
        for broken in ("3", "4"):
            client.set_registered_model_alias("tiny", "champion", broken)
            wait_for(lambda n=broken: f"version {n} of tiny cannot be served" in served.log, 60)
        client.set_registered_model_alias("tiny", "champion", "2")
        wait_for(lambda: len(answers) > seen + 40 or errors, 60)
        time.sleep(1)  # some looks at the registry
        done.set()
        for thread in threads:
            thread.join(60)
        (model,) = served.call("/v1/models").json["data"]
        metrics = served.call("/metrics").body.decode()
        log = served.log
    assert not errors
    assert {sha256 for _, sha256, _ in answers} == {hashes["1"], hashes["2"]}
    own = {}
    for number in ("1", "2"):
        generator = Generator(tiny_model(int(number)), tokenizer, "cpu")
        for i in range(4):
            a = ask(i)
            options = {"max_new_tokens": a["max_tokens"], "temperature": a["temperature"], "seed": a["seed"]}
            own[i, hashes[number]] = generator.generate_text(a["prompt"], **options)
    assert len(set(own.values())) > 6  # the models differ
    assert all(text == own[i, sha256] for i, sha256, text in answers)
    order = [sha256 for _, sha256, _ in answers]
    assert order.index(hashes["2"]) > 20 and order[-1] == hashes["2"]
    assert (model["version"], model["weights_sha256"]) == ("2", hashes["2"])
    assert 'foundry_model_changes_total{kind="replaced"} 1.0' in metrics
    assert 'foundry_model_changes_total{kind="refused"} 2.0' in metrics
    assert f'weights_sha256="{hashes["2"]}"' in metrics and "foundry_versions_loaded 1.0" in metrics
    assert log.count("cannot be served") == 2 and log.count("model replaced") == 1
    assert "hf/model.safetensors: changed" in log  # the damaged file is named
    assert "closed tiny/1" in log
    assert "salt" not in log and "Boil" not in log  # no text of a prompt


class FakeRegistry:
    """Answers as `foundry.serving.registry.Registry` from a list: an error, or a folder."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def find(self, address, into, known=None):
        self.asked += 1
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        content = sha256_tree(answer)
        if content == known:
            return Registered(name="tiny", version=answer.name, content=content, folder=None)
        shutil.copytree(answer, into / "export")
        return Registered(name="tiny", version=answer.name, content=content, folder=str(into / "export"))

    def close(self):
        pass


@pytest.fixture(scope="module")
def exports(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    for number in ("1", "2"):
        make_export(root / number, tiny_model(int(number)), tokenizer)
    return root


def keeper_of(registry, **options):
    models, changes = Models(), []
    serving = Serving(poll_seconds=0.02, max_running=2)
    return Keeper(models, "models:/tiny@champion", serving, "cpu", changes.append, registry, **options), models, changes


def test_a_registry_that_is_away_is_reported_once_and_again_when_it_is_back(exports):
    away = [TrackingError("cannot reach it")] * 5
    registry = FakeRegistry(exports / "1", *away, exports / "1")
    keeper, models, changes = keeper_of(registry)
    keeper.load()
    keeper.start()
    wait_for(lambda: registry.asked > 12)
    keeper.close()
    assert [c.kind for c in changes] == ["loaded", "away", "back"]
    assert [v.facts.version for v in models.versions()] == ["1"]
    models.close(drain=True)


def test_a_folder_is_served_until_the_registry_has_a_champion(exports):
    none = ConfigError("no version of tiny has the alias champion")
    registry = FakeRegistry(none, none, none, exports / "2")
    keeper, models, changes = keeper_of(registry, fallback=exports / "1")
    assert keeper.load().facts.version is None
    keeper.start()
    wait_for(lambda: len(changes) >= 3)
    keeper.close()
    assert [c.kind for c in changes] == ["loaded", "back", "replaced"]
    assert models.versions()[0].facts.version == "2"
    models.close(drain=True)


def test_without_a_champion_and_without_a_folder_nothing_is_served(exports):
    keeper, _, _ = keeper_of(FakeRegistry(ConfigError("no version of tiny has the alias champion")))
    with pytest.raises(ConfigError, match="alias champion"):
        keeper.load()


def test_a_request_finishes_on_the_version_it_began_with_which_is_then_closed_and_freed(exports):
    models = Models()
    serving = Serving(max_running=2)
    models.serve(load_folder(exports / "1", serving, "cpu", "one", "1"))
    gone = threading.Event()
    held = models.hold("tiny")
    first = held.__enter__()
    models.serve(load_folder(exports / "2", serving, "cpu", "two", "2"), release=gone.set)
    assert [(v.name, v.facts.version) for v in models.versions()] == [("tiny", "2"), ("tiny/1", "1")]
    with models.hold(None) as second:
        assert second.facts.version == "2"
    with pytest.raises(ApiError) as refused, models.hold("tiny/1"):
        pass
    assert refused.value.status == 404
    assert first.backend.stats().slots == 2  # it still answers
    backend = weakref.ref(first.backend)
    del first
    held.__exit__(None, None, None)
    del held
    wait_for(lambda: len(models.versions()) == 1)
    gc.collect()
    wait_for(lambda: backend() is None)
    assert not gone.is_set()
    models.close(drain=True)
    assert gone.is_set()


def test_the_registry_is_asked_in_a_process_that_ends_with_its_parent(registry, tmp_path):
    _, uri, _ = registry
    connect(uri).set_registered_model_alias("tiny", "other", "2")
    asked = Registry(uri)
    try:
        (tmp_path / "a").mkdir()
        found = asked.find("models:/tiny@other", tmp_path / "a")
        assert (found.name, found.version) == ("tiny", "2") and Path(found.folder, "proof.json").is_file()
        assert asked.find("models:/tiny/2", tmp_path / "a", known=found.content).folder is None
        with pytest.raises(ConfigError, match="no version 9"):
            asked.find("models:/tiny/9", tmp_path / "a")
        asked._child.kill()  # as the kernel does when memory is short
        with pytest.raises(TrackingError, match="ended without an answer"):
            asked._exchange(asked._child, "{}\n")
        assert asked.find("models:/tiny/2", tmp_path / "a", known=found.content).folder is None
    finally:
        child = asked._child
        asked.close()
    assert child.poll() is not None


def test_a_damaged_export_is_refused_and_the_file_is_named(exports, tmp_path):
    folder = tmp_path / "export"
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exports / "1", folder)
        data = bytearray((folder / "hf" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "hf" / name).write_bytes(data)
        for place in (folder, folder / "hf"):
            with pytest.raises(ExportError, match=f"hf/{name}: changed"):
                load_folder(place, Serving(), "cpu", "x")
    with pytest.raises(FoundryError, match="is not a folder with a model"):
        load_folder(tmp_path / "nothing", Serving(), "cpu", "x")
