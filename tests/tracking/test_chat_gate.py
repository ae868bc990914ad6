"""The promotion of a chat model: guards that hold for every version, and a paired comparison with the champion."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_tables import answers

from foundry.chat.measures import Draws, paired
from foundry.config import DataError, parse_config
from foundry.export.proof import ChatProof, ChatRecord, ExportRecord, GreedyProof
from foundry.project import register
from foundry.project.register_chat import chat_candidate, chat_gate, guards, verdict
from foundry.tracking import tracking_uri
from foundry.tracking.names import ENDED, EXACT, WHY
from foundry.tracking.settings import connect
from foundry.utils.bootstrap import Interval
from foundry.utils.files import write_json

CODE = """
import mlflow
class Nothing(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return ["" for _ in model_input]
mlflow.models.set_model(Nothing())
"""


@pytest.fixture
def cfg():
    return parse_config(
        {
            "download": {"sources": [{"name": "one", "url": "file:corpus/x"}]},
            "chat_evaluate": {"bootstrap": 200},
        }
    )


def exactly(value):
    return Interval(value=value, low=value, high=value)


def record(ended=1.0, forgetting=0.01, macro=0.5):
    proof = ChatProof(
        conversations=20, tokens=400, engines=["transformers"], greedy=GreedyProof(prompts=32, tokens=300, ties=0)
    )
    return ChatRecord(
        stage="sft",
        parent_sha256="1" * 64,
        template_sha256="2" * 64,
        data_sha256="3" * 64,
        macro_exact=exactly(macro),
        ended=exactly(ended),
        forgetting=exactly(forgetting),
        proof=proof,
    )


def test_the_guards_name_what_speaks_against_a_model(cfg):
    assert guards(cfg, record()) == "" == guards(cfg, record(ended=0.98, forgetting=0.03))
    assert "ends 97.0% of its answers (at least 98.0%" in guards(cfg, record(ended=0.97))
    assert "forgot +0.0400 bits per byte" in guards(cfg, record(forgetting=0.04))
    assert guards(cfg, record(ended=0.5, forgetting=0.4)).count("chat_export.") == 2


def test_a_model_that_breaks_a_guard_is_not_even_the_first_champion(cfg):
    mine = answers([True] * 4)
    assert chat_gate(cfg, mine, "", record())(None).promote
    refused = chat_gate(cfg, mine, "", record(ended=0.5))(None)
    assert not refused.promote and "ends 50.0%" in refused.reason and refused.figures["ended"] == 0.5


def test_a_gain_promotes_unless_one_task_is_worse_by_more_than_its_interval():
    tasks = {"task": ["a"] * 60 + ["b"] * 60 + ["c"] * 60}
    before = answers([False] * 60 + [True] * 60 + [False] * 60, **tasks)
    better = answers([True] * 60 + [True] * 60 + [True] * 30 + [False] * 30, **tasks)
    worse_in_b = answers([True] * 60 + [False] * 30 + [True] * 30 + [True] * 60, **tasks)
    draws = Draws(200, 1)
    done = verdict(paired(before, better, ("version 3", "this version"), draws), "3")
    assert done.promote and done.reason.startswith("better: macro exact match +50.0 points")
    assert done.figures["low"] > 0 and done.figures["p_value"] < 0.01 and done.figures["win_rate"] > 0.5
    refused = verdict(paired(before, worse_in_b, ("version 3", "this version"), draws), "3")
    assert not refused.promote and "worse by more than its interval in b -50.0 points" in refused.reason
    assert not verdict(paired(better, better, ("a", "b"), draws), "3").promote
    assert not verdict(paired(better, before, ("a", "b"), draws), "3").promote


@pytest.fixture
def home(tables, tmp_path, monkeypatch, cfg):
    """A project with an export of a chat model, reduced to what a registration needs."""
    home = tmp_path / "project"
    (home / ".foundry").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(home))
    shutil.copy(tables, home / ".foundry/mlflow.db")
    (home / "code.py").write_text(CODE)
    (home / "params.yaml").write_text(
        "download: {sources: [{name: one, url: 'file:corpus/x'}]}\nchat_evaluate: {bootstrap: 200}\n"
    )

    def candidate(root, export):
        text = (root / export / "weights.txt").read_text()
        chat = ChatRecord.read(root / export / "chat.json", "x")
        tags = {ENDED: repr(chat.ended.value), EXACT: repr(chat.macro_exact.value)}
        scores = root / "artifacts/chat/evaluation/sft/answers.parquet"
        made = register.Candidate(
            "foundry-chat", f"fp-{text}", root / export, scores, home / "code.py", [], tags=tags,
            artifacts=[root / "params.yaml"],
        )  # fmt: skip
        return made, chat

    monkeypatch.setattr(register, "chat_candidate", candidate)
    return home


def exported(home, name, exact, prompts=None, **chat):
    folder = home / "artifacts/chat/export"
    for path in (folder, home / "artifacts/chat/evaluation/sft"):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "weights.txt").write_text(name)
    write_json(folder / "chat.json", record(**chat).model_dump())
    table = answers(exact, task=["a", "b"] * (len(exact) // 2))
    if prompts:
        table = table.set_column(0, "prompt", pa.array([f"{prompts}{i:04}" for i in range(len(exact))]))
    pq.write_table(table, home / "artifacts/chat/evaluation/sft/answers.parquet")


def test_versions_of_foundry_chat_through_the_registry(home, cfg):
    export = "artifacts/chat/export"
    client = connect(tracking_uri(cfg.runtime))

    def champion():
        return str(client.get_registered_model("foundry-chat").aliases["champion"])

    exported(home, "first", [False] * 40)
    assert register.register_export(cfg, home, export).champion
    exported(home, "better", [True] * 30 + [False] * 10)
    done = register.register_export(cfg, home, export)
    assert done.champion and done.reason.startswith("better: macro exact match +75.0 points") and champion() == "2"
    exported(home, "endless", [True] * 40, ended=0.6)
    refused = register.register_export(cfg, home, export)
    assert not refused.champion and "ends 60.0% of its answers" in refused.reason and champion() == "2"
    assert "ends 60.0%" in client.get_model_version("foundry-chat", "3").tags[WHY]
    exported(home, "elsewhere", [True] * 40, prompts="q")
    other = register.register_export(cfg, home, export)
    assert not other.champion and "answered other prompts (the models did not answer the same prompts" in other.reason
    assert register.promote(cfg, "3", "to show it", model="foundry-chat").champion and champion() == "3"
    assert register.rollback(cfg, "enough", model="foundry-chat").after == "2" and champion() == "2"


def test_a_registration_of_another_evaluation_is_refused(tmp_path, monkeypatch):
    """The report, the table and the export must be of one model."""
    from foundry.project import register_chat

    known = ExportRecord.model_construct(
        model_name="foundry-chat", weights_sha256="4" * 64, fingerprint="f" * 16, chat=record(), files={}
    )
    monkeypatch.setattr(register_chat, "verify_export", lambda folder: known)
    with pytest.raises(DataError, match=r"reports/chat\.json"):
        chat_candidate(tmp_path, "artifacts/chat/export")
    monkeypatch.setattr(register_chat, "verify_export", lambda folder: known.model_copy(update={"chat": None}))
    with pytest.raises(DataError, match="not trained to answer"):
        chat_candidate(tmp_path, "artifacts/chat/export")
