"""Questions from the test text: stable, answerable, in any script; answers as lm-evaluation-harness gives them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scoring import tiny

from foundry.config import ConfigError, DataError, Runtime, parse_config
from foundry.data.tokens.documents import Window, batches
from foundry.evaluation import contamination, tasks
from foundry.evaluation.bits_per_byte import bits_per_byte, score
from foundry.evaluation.choices import choice_nats
from foundry.evaluation.documents import Documents
from foundry.evaluation.questions import Question, read_questions, read_task_files
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents
from foundry.utils.evaluation_report import TrainingOverlap
from foundry.utils.log import get_logger

ROOT = Path(__file__).resolve().parents[2]
CHINESE = (
    "北京大学创建于一八九八年初名京师大学堂是中国近代第一所国立综合性大学"
    "也是当时中国最高教育行政机关辛亥革命后改为现名学校为教学研究服务社会"
)


def texts_as_documents(texts, source="one"):
    n = len(texts)
    sizes = np.array([len(t.encode()) for t in texts])
    return Documents(
        [np.zeros(2)] * n, sizes, np.ones(n, int), [source] * n, ["und"] * n, [f"{i:016x}" for i in range(n)], texts
    )


def test_only_the_right_choice_is_the_text_of_the_document(held):
    made = tasks.make_tasks(["cloze", "minimal_pairs"], held, 100, 1)
    texts = dict(zip(held.doc_ids, held.texts, strict=True))
    for name, choices in (("cloze", 4), ("minimal_pairs", 2)):
        assert len(made[name]) == len(held)
        for q in made[name]:
            assert len(set(q.choices)) == choices and 0 <= q.label < choices
            assert q.context + q.choices[q.label] in texts[q.id]
            assert not any(q.context + c in texts[q.id] for i, c in enumerate(q.choices) if i != q.label)
            assert q.choices[q.label].startswith(" ") and not q.context.endswith(" ")  # cut where a word ends
    assert len({q.label for q in made["cloze"]}) > 1
    for q in made["minimal_pairs"]:
        assert sorted(q.choices[0].split()) == sorted(q.choices[1].split())


def test_questions_are_reproducible_and_new_documents_change_no_minimal_pair_of_old_ones(held):
    again = [tasks.make_tasks(["cloze", "minimal_pairs"], held, 100, 1) for _ in range(2)]
    assert again[0] == again[1]
    fewer = Documents(
        *(x[:10] for x in (held.tokens, held.n_bytes, held.words, held.sources, held.langs, held.doc_ids, held.texts))
    )
    few = {q.id: q for q in tasks.make_tasks(["minimal_pairs"], fewer, 100, 1)["minimal_pairs"]}
    many = {q.id: q for q in again[0]["minimal_pairs"]}
    assert len(few) == 10 and all(many[i] == q for i, q in few.items())
    assert tasks.make_tasks(["cloze"], held, 100, 2) != {"cloze": again[0]["cloze"]}


def test_a_script_without_spaces_has_questions_too():
    texts = [CHINESE[i:] + 2 * CHINESE + CHINESE[: 2 * i] for i in range(8)]
    made = tasks.make_tasks(["cloze", "minimal_pairs"], texts_as_documents(texts), 9, 1)
    assert len(made["minimal_pairs"]) == 8
    for q in made["minimal_pairs"]:
        assert q.context + q.choices[q.label] in texts[int(q.id, 16)]
        changed = [i for i, (a, b) in enumerate(zip(*q.choices, strict=True)) if a != b]
        assert len(changed) == 2 and changed[1] == changed[0] + 1


def test_too_short_documents_give_no_question_and_no_error():
    assert tasks.make_tasks(["cloze", "minimal_pairs"], texts_as_documents(["short", "x" * 90]), 9, 1) == {
        "cloze": [],
        "minimal_pairs": [],
    }


def test_answers_equal_those_of_one_choice_at_a_time(held, tokenizer):
    model = tiny(
        vocab_size=tokenizer.vocab_size, max_seq_len=64
    )  # shorter than some questions: their beginning is dropped
    questions = tasks.make_tasks(["cloze"], held, 100, 1)["cloze"]
    plain, normal, dropped = [], [], 0
    for q in questions:
        cost = []
        for choice in q.choices:
            before, whole = tokenizer.encode(q.context, bos=True), tokenizer.encode(q.context + choice, bos=True)
            dropped += len(whole) > 65
            ids = torch.tensor(whole[-65:])
            log_p = model(ids[None, :-1])[0][0].double().log_softmax(-1)
            at = range(max(len(before) - (len(whole) - len(ids)), 1), len(ids))
            cost.append(-sum(log_p[i - 1, ids[i]].item() for i in at))
        plain.append(int(np.argmin(cost)) == q.label)
        normal.append(int(np.argmin([c / len(t) for c, t in zip(cost, q.choices, strict=True)])) == q.label)
    got = tasks.answer(model, tokenizer, questions)
    assert got.right.tolist() == plain and got.right_per_character.tolist() == normal and dropped
    score = tasks.task_score(model, tokenizer, questions, 200, 1)
    assert score.score == round(np.mean(plain), 4) and score.low <= score.score <= score.high
    assert score.chance == 0.25 and score.n == len(questions)


@pytest.mark.parametrize("context", [256, 64, 12, 2])
def test_nats_of_choices_equal_those_of_whole_windows_and_take_fewer_tokens(held, tokenizer, monkeypatch, context):
    model = tiny(vocab_size=tokenizer.vocab_size, max_seq_len=context)
    made = tasks.make_tasks(["cloze", "minimal_pairs"], held, 100, 1)
    odd = [
        Question("alike", "The", (" a", " a"), 0),  # what all choices share is never everything
        Question("no context", "", ("The river", "A river", "The oven"), 0),
    ]
    asked = [tasks._windows(q, tokenizer, context) for q in (*made["cloze"], *made["minimal_pairs"], *odd)]
    flat = [Window(i, w.tokens, w.first_scored) for i, w in enumerate(w for choices in asked for w in choices)]
    expected, _ = score_documents(model, batches(flat, 8), len(flat))
    read, hidden = [], MiniLLM.hidden

    def counting(self, tokens, *args):
        read.append(tokens.numel())
        return hidden(self, tokens, *args)

    monkeypatch.setattr(MiniLLM, "hidden", counting)
    got = choice_nats(model, asked)
    assert [len(g) for g in got] == [len(choices) for choices in asked]
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=2e-5)
    if context == 256:  # which drops no beginning
        assert sum(read) < 0.7 * sum(len(w.tokens) - 1 for w in flat)


@pytest.mark.parametrize(
    "line, reported",
    [
        ('{"context": "a", "choices": ["b", "c"]}', "no field 'label'"),
        ('{"contxt": "a", "choices": ["b", "c"], "label": 0}', r"no field 'context' \(it has 'contxt'"),
        ('{"context": "a", "choices": "b", "label": 0}', "'choices' is 'b', not list"),
        ('{"context": "a", "choices": ["b"], "label": 0}', "two or more"),
        ('{"context": "a", "choices": ["b", ""], "label": 0}', "not empty"),
        ('{"context": "a", "choices": ["b", "c"], "label": 2}', "'label' is 2, there are 2 choices"),
        ('{"context": "a", "choices": ["b", "c"], "label": "0"}', "'label' is '0', not int"),
        ('["a"]', "is list, not an object"),
        ("{", "is not JSON"),
    ],
)
def test_a_malformed_question_is_reported_with_its_line_and_field(tmp_path, line, reported):
    good = json.dumps({"context": "a", "choices": ["b", "c"], "label": 1})
    (tmp_path / "mine.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(DataError, match=rf"mine.jsonl, line 3.*{reported}"):
        read_questions(tmp_path / "mine.jsonl")


def test_an_empty_file_of_questions_and_a_pattern_without_files_are_refused(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/none.jsonl").write_text("\n")
    with pytest.raises(DataError, match="contains no question"):
        read_task_files(["tasks/*.jsonl"], tmp_path)
    with pytest.raises(ConfigError, match=r"'tasks/\*.json' matches no file"):
        read_task_files(["tasks/*.json"], tmp_path)


def test_the_shipped_questions_are_balanced():
    questions = read_questions(ROOT / "tasks/agreement-en.jsonl")
    assert len({(q.context, q.choices[q.label]) for q in questions}) == len(questions) == 48
    for word in ("is", "are", "was", "were"):
        assert sum(q.choices[q.label].split()[0] == word for q in questions) == 12
    assert 15 < sum(q.label for q in questions) < 33


@pytest.mark.parametrize("at_a_time", [1, 2, 256])
def test_runs_of_words_are_found_exactly_where_the_training_text_has_them(monkeypatch, at_a_time):
    monkeypatch.setattr(contamination, "TEXTS", at_a_time)
    words = [f"w{i}" for i in range(200)]
    train = [" ".join(words[:100]), "an other text entirely", "", " ".join(words[100:])]
    seen = " ".join(words[10:30])  # 8 runs of 13
    half = " ".join(words[90:110])  # crosses two documents: each half has no run of 13
    got = contamination.shared_runs(
        {"a": [seen, half, "too short"], "b": [seen.upper() + "!", "x " + " ".join(words[:13])]},
        13,
        [train[:2], train[2:]],
        iter,
        Runtime(workers=1),
    )
    assert got["a"].seen.tolist() == [8, 0, 0] and got["a"].runs.tolist() == [8, 8, 0]
    assert got["b"].seen.tolist() == [8, 1] and got["b"].runs.tolist() == [8, 2]
    overlap = contamination.training_overlap(got["a"], 200, 1)
    assert overlap.looked_at == 2 and overlap.texts.value == 0.5 and overlap.runs.value == 0.5
    too_short = contamination.SharedRuns(np.zeros(2, int), np.zeros(2, int))
    nothing = TrainingOverlap(texts=None, runs=None, looked_at=0)
    assert contamination.training_overlap(too_short, 200, 1) == nothing


@pytest.mark.slow
def test_the_harness_gives_the_same_answers_and_the_same_bits_per_byte(held, tokenizer, tmp_path, monkeypatch):
    """The harness reads the exported folder through transformers; our scores are of the model itself."""
    from foundry.evaluation.harness import run_harness
    from foundry.export.huggingface import export_huggingface

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = tiny(vocab_size=tokenizer.vocab_size, max_seq_len=64)
    export_huggingface(model, tokenizer, tmp_path / "hf")
    made = tasks.make_tasks(["cloze", "minimal_pairs"], held, 100, 1)
    tasks.write_tasks(tmp_path / "tasks", made, tmp_path / "tasks")
    (tmp_path / "tasks/rolling.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held.texts))
    (tmp_path / "tasks/rolling.yaml").write_text(
        "task: rolling\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/tasks/rolling.jsonl}}}}\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]\n"
    )
    got = run_harness(
        tmp_path / "hf", ["foundry_cloze", "foundry_minimal_pairs", "rolling"], include=tmp_path / "tasks"
    )
    for name, questions in made.items():
        ours = tasks.task_score(model, tokenizer, questions, 100, 1)
        theirs = got[f"foundry_{name}"]
        assert theirs.n == ours.n == len(questions)
        assert theirs.metrics["acc"].value == ours.score and theirs.metrics["acc_norm"].value == ours.acc_norm.value
    scores = score(model, held.tokens, 64)
    assert got["rolling"].metrics["bits_per_byte"].value == pytest.approx(
        bits_per_byte(scores.nats, held.n_bytes), abs=1e-4
    )
    with pytest.raises(ConfigError, match="knows no task no_such_task"):
        run_harness(tmp_path / "hf", ["no_such_task"])
    # as the stage does it: a task file of the user's own in tasks/, the model exported for it
    from stages.evaluate import _harness

    cfg = parse_config(
        {
            "download": {"sources": [{"name": "one", "url": "file:corpus/x"}]},
            "evaluate": {"harness": ["rolling"], "harness_limit": 2},
        }
    )
    monkeypatch.chdir(tmp_path)
    staged = _harness(model, tokenizer, cfg, get_logger())
    first = score(model, held.tokens[:2], 64)
    assert staged["rolling"].n == 2
    assert staged["rolling"].metrics["bits_per_byte"].value == pytest.approx(
        bits_per_byte(first.nats, held.n_bytes[:2]), abs=1e-4
    )
    (tmp_path / "tasks/rolling.jsonl").unlink()
    with pytest.raises(DataError, match="the data of rolling cannot be loaded"):
        _harness(model, tokenizer, cfg, get_logger())
