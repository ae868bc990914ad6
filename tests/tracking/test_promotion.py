"""The champion is right whatever people do to aliases, versions and tags in MLflow, and wherever a change is killed.

There are hundreds of cases, and MLflow takes tens of milliseconds for a write to SQLite. The registry here is therefore
a dictionary, whose answers a test compares with those of MLflow.
"""

import itertools
import json
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList

from foundry.config import ConfigError
from foundry.tracking.names import HISTORY, MOVE, ROLLED_BACK, WHY
from foundry.tracking.promotion import Decision, Rollback, finish, force, rollback, settle, whoami
from foundry.tracking.settings import connect

NUMBER = itertools.count()


class Registry:
    """What `foundry.tracking.promotion` uses of MlflowClient."""

    def __init__(self):
        self._models = {}

    def create_registered_model(self, name):
        self._models[name] = SimpleNamespace(aliases={}, tags={}, versions={}, made=0)

    def create_model_version(self, name, source, await_creation_for):
        model = self._models[name]
        model.made += 1
        model.versions[str(model.made)] = {}

    def _model(self, name):
        if name not in self._models:
            raise MlflowException("not found", RESOURCE_DOES_NOT_EXIST)
        return self._models[name]

    def get_registered_model(self, name):
        model = self._model(name)
        return SimpleNamespace(aliases=dict(model.aliases), tags=dict(model.tags))

    def get_model_version(self, name, version):
        if version not in (versions := self._model(name).versions):
            raise MlflowException("not found", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(version=version, tags=dict(versions[version]))

    def search_model_versions(self, query, max_results=1000, page_token=None):
        name = query.removeprefix("name='").removesuffix("'")
        return PagedList([self.get_model_version(name, v) for v in self._model(name).versions], token=None)

    def set_registered_model_alias(self, name, alias, version):
        self.get_model_version(name, version)
        self._model(name).aliases[alias] = version

    def delete_registered_model_alias(self, name, alias):
        self._model(name).aliases.pop(alias, None)

    def set_registered_model_tag(self, name, key, value):
        self._model(name).tags[key] = value

    def delete_registered_model_tag(self, name, key):
        self._model(name).tags.pop(key, None)

    def set_model_version_tag(self, name, version, key, value):
        self.get_model_version(name, version)
        self._model(name).versions[version][key] = value

    def delete_model_version_tag(self, name, version, key):
        self.get_model_version(name, version)
        self._model(name).versions[version].pop(key, None)

    def delete_model_version(self, name, version):
        model = self._model(name)
        del model.versions[version]
        model.aliases = {k: v for k, v in model.aliases.items() if v != version}


@pytest.fixture(scope="module")
def client():
    return Registry()


def model(client, champions=("1", "2"), versions=4):
    """A registered model.

    All of `champions` were champion, in this order, and the last one is; `challenger` is the newest.
    """
    name = f"m{next(NUMBER)}"
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, "s3://nowhere/model", await_creation_for=0)
    for version in champions:
        force(client, name, version, "it is better", "Ada")
    client.set_registered_model_alias(name, "challenger", str(versions))
    return name


def state(client, name):
    """(aliases, line of champions, tags of every version, tags of the model without the line)."""
    found = client.get_registered_model(name)
    tags = dict(found.tags)
    line = [e["version"] for e in json.loads(tags.pop(HISTORY, "[]"))]
    versions = {str(v.version): v.tags for v in client.search_model_versions(f"name='{name}'")}
    return {k: str(v) for k, v in found.aliases.items()}, line, versions, tags


class Killed(Exception):
    pass


class Mortal:
    """A client whose process is killed at its n-th write: before the write, or after it and before the answer."""

    def __init__(self, client, at, after):
        self._client, self._left, self._after = client, at, after

    def __getattr__(self, name):
        call = getattr(self._client, name)
        if not name.startswith(("set_", "delete_")):
            return call

        def counted(*args, **more):
            self._left -= 1
            if self._left == 0 and self._after:
                call(*args, **more)
            if self._left == 0:
                raise Killed
            return call(*args, **more)

        return counted


def command(which, client, name):
    if which == "rollback":
        return rollback(client, name, "it is not", "Bob")
    if which == "force":
        return force(client, name, "3", "it is nicer", "Bob")
    better = Decision(True, "better", {"difference": -0.1})
    return settle(client, name, client.get_model_version(name, "3"), lambda champion: better)


@pytest.mark.parametrize("which", ["rollback", "force", "promote"])
def test_a_move_that_is_killed_at_any_write_is_finished_by_the_same_command(client, which, monkeypatch):
    monkeypatch.setattr("foundry.tracking.promotion._today", lambda: "today")
    expected = model(client)
    command(which, client, expected)
    aliases, line, versions, tags = state(client, expected)
    assert aliases["champion"] == {"rollback": "1"}.get(which, "3") and MOVE not in tags
    kills = 0
    for at, after in itertools.product(range(1, 20), (False, True)):
        name = model(client)
        try:
            command(which, Mortal(client, at, after), name)
        except Killed:
            kills += 1
            if (
                after
                and MOVE not in state(client, name)[3]
                and state(client, name)[0]["champion"] == aliases["champion"]
            ):
                assert state(client, name) == (aliases, line, versions, tags)  # its last write: all was done
                continue
            command(which, client, name)
        assert state(client, name) == (aliases, line, versions, tags), (at, after)
    assert kills >= 10  # every write of the command was reached, twice


def test_a_killed_move_is_dropped_when_a_person_has_changed_the_champion_since(client):
    name = model(client)
    with pytest.raises(Killed):
        rollback(Mortal(client, 2, False), name, "x", "Bob")
    assert MOVE in state(client, name)[3]
    client.set_registered_model_alias(name, "champion", "4")
    assert finish(client, name) is None and MOVE not in state(client, name)[3]
    assert rollback(client, name, "x", "Bob") == Rollback("4", "2")
    name = model(client)
    with pytest.raises(Killed):
        force(Mortal(client, 2, False), name, "3", "x", "Bob")
    client.delete_model_version(name, "3")
    assert rollback(client, name, "x", "Bob") == Rollback("2", "1")


DELETED = ((), ("1",), ("2",), ("1", "2"), ("4",), ("2", "4"), ("1", "2", "3"))


@pytest.mark.parametrize("which", ["register", "promote", "rollback"])
def test_every_combination_of_what_people_do_in_mlflow_ends_in_a_right_champion_or_a_clear_error(client, which):
    """Aliases are moved or removed, versions deleted. Champions were 1, then 2; versions 3 and 4 were refused."""
    for champion, challenger, deleted in itertools.product(("kept", "moved", "removed"), ("kept", "removed"), DELETED):
        name, case = model(client), (champion, challenger, deleted)
        if champion == "moved":
            client.set_registered_model_alias(name, "champion", "3")
        if champion == "removed":
            client.delete_registered_model_alias(name, "champion")
        if challenger == "removed":
            client.delete_registered_model_alias(name, "challenger")
        for version in deleted:
            client.delete_model_version(name, version)
        left = [v for v in "1234" if v not in deleted]
        now = {"kept": "2", "moved": "3"}.get(champion)
        now = now if now in left else None
        seen = []

        def worse(other, seen=seen):
            seen.append(other and str(other.version))
            return Decision(other is None, "worse" if other else "there was no champion")

        if which == "rollback":
            order = ["1", "2", "3"] if champion == "moved" and now else ["1", "2"]
            known = now or "2"
            before = [v for v in order[: order.index(known)] if v in left]
            if not before:
                with pytest.raises(ConfigError, match="--force --why"):
                    rollback(client, name, "x", "Bob")
                assert state(client, name)[0].get("champion") == now, case
                continue
            assert rollback(client, name, "x", "Bob") == Rollback(known, before[-1]), case
            aliases, line, versions, tags = state(client, name)
            assert aliases["champion"] == before[-1] == line[-1], case
            assert [v for v, t in versions.items() if ROLLED_BACK in t] == [known] * (known in left), case
        elif which == "register":
            version = client.get_model_version(name, left[-1])
            champion_now = settle(client, name, version, worse).champion
            aliases, line, versions, tags = state(client, name)
            assert aliases["challenger"] == left[-1], case
            assert aliases["champion"] == (now or left[-1]), case
            assert champion_now == (aliases["champion"] == left[-1]) and seen == ([] if now == left[-1] else [now]), (
                case
            )
        else:
            assert force(client, name, left[0], "x", "Bob") == now, case
            aliases, line, versions, tags = state(client, name)
            assert aliases["champion"] == left[0] == line[-1] and versions[left[0]][WHY].startswith("promoted"), case
        assert MOVE not in tags and set(aliases.values()) <= set(left), case


def story(client, monkeypatch):
    """What somebody might do over some weeks, with the result and the state after each action."""
    monkeypatch.setattr("foundry.tracking.promotion._today", lambda: "today")
    name, states = model(client, ("1",)), []

    def then(call):
        try:
            result = str(call())
        except (ConfigError, MlflowException) as e:
            result = type(e).__name__
        states.append((result, state(client, name)))

    then(lambda: command("promote", client, name))
    then(lambda: client.delete_model_version(name, "1"))
    then(lambda: command("rollback", client, name))
    then(lambda: command("force", client, name))
    then(lambda: client.set_registered_model_alias(name, "champion", "2"))
    then(lambda: command("rollback", client, name))
    then(lambda: client.delete_model_version(name, "3"))
    then(lambda: command("rollback", client, name))
    then(lambda: client.set_registered_model_alias(name, "champion", "3"))
    then(lambda: client.delete_registered_model_alias(name, "champion"))
    then(lambda: command("force", client, name))
    return states


def test_the_dictionary_answers_as_mlflow_does(client, uri, monkeypatch):
    ours = story(client, monkeypatch)
    assert ours == story(connect(uri), monkeypatch)
    assert len({result for result, _ in ours}) > 3


def test_rollback_skips_deleted_versions_and_the_next_one_works(client):
    name = model(client, champions=("1", "2", "3", "4"))
    client.delete_model_version(name, "3")
    assert rollback(client, name, "x", "Bob") == Rollback("4", "2")
    assert rollback(client, name, "y", "Bob") == Rollback("2", "1")
    marked = {v: t.get(ROLLED_BACK, "") for v, t in state(client, name)[2].items()}
    assert marked["4"].endswith(": x") and marked["2"].endswith(": y") and not marked["1"]
    with pytest.raises(ConfigError, match="no champion before version 1"):
        rollback(client, name, "z", "Bob")


@pytest.mark.parametrize(
    "text", ["{cut", "7", "null", '[{"who": "me"}]', '[{"version": 3}]', '["3"]', '{"version": "3"}', '{"after": "3"}']
)
@pytest.mark.parametrize("tag", [HISTORY, MOVE])
def test_tags_that_somebody_edited_are_refused_by_name(client, tag, text):
    name = model(client, versions=2)
    client.set_registered_model_tag(name, tag, text)
    with pytest.raises(ConfigError, match=f"tag {tag} of the model {name} is not what Foundry wrote"):
        rollback(client, name, "x", "Bob")
    assert state_of_alias(client, name) == "2"


def state_of_alias(client, name):
    return str(client.get_registered_model(name).aliases["champion"])


def test_a_model_that_is_not_there_is_the_users_mistake(client):
    for call in (lambda: rollback(client, "nothing", "x"), lambda: force(client, "nothing", "1", "x")):
        with pytest.raises(ConfigError, match="no model nothing; `foundry register`"):
            call()


def test_a_user_without_a_name_has_a_number(monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("foundry.tracking.promotion.subprocess.run", lambda *a, **k: (_ for _ in ()).throw(OSError()))
    monkeypatch.setattr("foundry.tracking.promotion.getpass.getuser", nobody)
    assert whoami().startswith("user ")
