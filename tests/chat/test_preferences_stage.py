"""The stage preferences: pairs of users' files and of what a server recorded, and sampled ones, in one folder."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from toy_rl import ends, tiny

from foundry.chat.example import Example, Turn
from foundry.chat.pairs import read_pairs
from foundry.chat.shards import write_chat
from foundry.chat.verifiers import VERIFIER_VERSION
from foundry.config import DataError, load_params
from foundry.config.chat import Preferences
from foundry.models import TrainingFacts, save_model
from foundry.serving.recording import RecordedAnswer, RecordedExchange, RecordedFeedback, RecordedModel
from foundry.tokenizers.chat import TEMPLATE_SHA256
from stages.preferences import work

PARAMS = load_params(Path(__file__).resolve().parents[2] / "params.yaml")


@pytest.fixture
def project(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tokenizer.path.parent, "artifacts/tokenizer")
    examples = {
        split: [
            Example(
                (Turn("user", f"{split} {i}"),), "letters", "toy", None, 0, split, "contains", {"expected": ["a", "e"]}
            )
            for i in range(24)
        ]
        for split in ("train", "val", "test")
    }
    write_chat("data/chat", examples, tokenizer, context=48, verifier_version=VERIFIER_VERSION)
    Path("corpus/recorded").mkdir(parents=True)
    return tmp_path


def record(question, *ratings):
    """The lines of an exchange with one answer per rating."""
    model = RecordedModel(name="m", version="1", fingerprint="f", weights_sha256="w", weights="float32")
    answers = [
        RecordedAnswer(index=i, prompt=0, text=f"answer {i}", seed=0, reason="stop", completion_tokens=2)
        for i in range(len(ratings))
    ]
    exchange = RecordedExchange(
        id=question,
        time=0.0,
        seconds=0.0,
        route="/v1/chat/completions",
        key=None,
        model=model,
        request={"messages": [{"role": "user", "content": question}]},
        answers=answers,
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=2,
        status=200,
    )
    rated = [RecordedFeedback(id=question, time=0.0, key=None, index=i, rating=r) for i, r in enumerate(ratings)]
    return [exchange, *rated]


def run(**preferences):
    work(PARAMS.model_copy(update={"preferences": Preferences(**preferences)}), logging.getLogger("test"))
    return json.loads(Path("reports/preferences.json").read_text())


def test_feedback_and_files_become_pairs_in_the_splits_of_their_prompts(project):
    lines = [x for split in ("train", "val", "test") for x in record(f"{split} 1", 1, -1)]
    Path("corpus/recorded/record-000001.jsonl").write_text("".join(x.model_dump_json() + "\n" for x in lines))
    records = [{"prompt": "train 2", "chosen": "a", "rejected": "b"}, {"prompt": "train 2", "chosen": "b"}]
    Path("corpus/mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    report = run(sampled=False, feedback=["corpus/recorded/*.jsonl"], sources=["corpus/mine.jsonl"])
    train, val = read_pairs("data/preferences", "train"), read_pairs("data/preferences", "val")
    assert [(p.prompt[0].content, p.source) for p in train] == [
        ("train 2", "corpus/mine.jsonl"),
        ("train 1", "feedback"),
    ]
    assert [p.prompt[0].content for p in val] == ["val 1"]
    assert (val[0].chosen[0].content, val[0].rejected[0].content) == ("answer 0", "answer 1")
    assert report["dropped"] == {"test_prompt": 1} and report["by_source"] == {"corpus/mine.jsonl": 1, "feedback": 2}
    assert report["files"][0]["quarantined"] == {"unknown_format": 1} and report["parent_sha256"] is None


def test_the_fine_tuned_model_is_sampled_and_one_of_another_template_is_refused(project, tokenizer):
    facts = TrainingFacts(fingerprint="s", tokenizer_sha256=tokenizer.sha256, index_sha256="i", steps=1, tokens=1)
    save_model("artifacts/chat/sft", ends(tiny(), tokenizer), facts)
    asked = {"prompts": 160, "samples": 16, "max_new_tokens": 10, "length_tolerance": 0.5}
    with pytest.raises(DataError, match="another tokenizer or chat template"):
        run(**asked)
    shutil.rmtree("artifacts/chat/sft")
    known = facts.model_copy(update={"template_sha256": TEMPLATE_SHA256})
    save_model("artifacts/chat/sft", ends(tiny(), tokenizer), known)
    report = run(**asked)
    first = {p.name: p.read_bytes() for p in Path("data/preferences").iterdir()}
    assert report["train"] > 0 < report["val"] and report["tasks"]["letters"]["prompts"] == 44
    assert report["tasks"]["letters"]["pairs"] == report["train"] + report["val"] == report["by_source"]["sampled"]
    run(**asked)
    assert {p.name: p.read_bytes() for p in Path("data/preferences").iterdir()} == first
