"""Measures of answers: shares, macro means, intervals and paired comparisons, from tables made by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_tables import answers

from foundry.chat.measures import (
    Draws,
    bits_per_byte,
    by_task,
    distinct_4,
    macro,
    macro_exact,
    mean,
    paired,
    pass_rates,
)
from foundry.chat.table import SCHEMA, read_answers, same_prompts
from foundry.config import DataError
from foundry.utils.bootstrap import Interval
from foundry.utils.chat_report import ChatReport

DRAWS = Draws(400, 1)


def test_the_macro_mean_counts_every_task_alike():
    tasks = ["a"] * 90 + ["b"] * 10
    exact = np.array([1.0] * 90 + [0.0] * 10)
    assert macro(exact, tasks, [str(i) for i in range(100)], DRAWS).value == 0.5
    assert mean(exact, [str(i) for i in range(100)], DRAWS).value == 0.9


def test_mistake_29_every_measured_number_has_an_interval_that_knows_its_prompts():
    """The interval of few prompts is wide, and that of prompts which share documents is that of the documents."""
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.6
    apart = mean(right, [str(i) for i in range(400)], DRAWS)
    few = mean(right[:16], [str(i) for i in range(16)], DRAWS)
    together = mean(np.repeat(right[:40], 10), [str(i // 10) for i in range(400)], DRAWS)
    width = {k: i.high - i.low for k, i in {"apart": apart, "few": few, "together": together}.items()}
    assert 0.07 < width["apart"] < 0.13  # 4 * sqrt(0.6 * 0.4 / 400) = 0.098
    assert width["few"] > 3 * width["apart"]
    assert width["together"] > 2.5 * width["apart"]
    # The schema itself has no measured share without its interval.
    shares = ("macro", "bits_per_byte", "ended", "distinct_4", "tokens", "foreign", "kl")
    fields = ChatReport.model_fields["models"].annotation.__args__[1].model_fields
    assert all("Interval" in str(fields[s].annotation) or "ByWording" in str(fields[s].annotation) for s in shares)


def test_wordings_that_the_training_lacked_are_reported_apart():
    exact = [True] * 30 + [False] * 30
    found = macro_exact(answers(exact, seen=[True] * 30 + [False] * 30), DRAWS)
    assert (found.all.value, found.seen.value, found.unseen.value) == (0.5, 1.0, 0.0)
    assert macro_exact(answers([True] * 5), DRAWS).unseen is None


def test_a_task_without_a_verifier_has_no_share_of_right_answers():
    two = [True, True, False, False]
    table = answers([True, False, False, False], task=["a", "a", "tell", "tell"], judged=two, primary=two)
    found = by_task(table, DRAWS)
    assert found["a"].exact.all.value == 0.5 and found["a"].prompts == 2
    assert found["tell"].exact is None and found["tell"].score is None and found["tell"].prompts == 2
    assert macro_exact(table, DRAWS).all.value == 0.5  # the other task is not counted as wrong
    assert macro_exact(table.slice(2), DRAWS) is None


def test_a_verdict_between_right_and_wrong_counts_in_the_win_rate_only():
    graded = {"task": ["a", "a", "define", "define"], "primary": [True, True, False, False]}
    a = answers([True, False, False, False], score=[1.0, 0.0, 0.2, 0.3], **graded)
    b = answers([True, False, False, False], score=[1.0, 0.0, 0.6, 0.3], **graded)
    assert by_task(b, DRAWS)["define"].score.value == 0.45 and by_task(b, DRAWS)["define"].exact is None
    done = paired(a, b, ("a", "b"), DRAWS)
    assert done.macro.value == 0.0 and set(done.tasks) == {"a"} and done.win_rate.value == 0.625 and done.prompts == 4
    nothing = paired(a.slice(2), b.slice(2), ("a", "b"), DRAWS)
    assert nothing.macro is None and nothing.verdict == "not distinguishable" and nothing.win_rate.value == 0.75


def test_bits_per_byte_are_those_of_all_bytes_together():
    table = answers([True, True, True], nats=[np.log(2) * 10, np.log(2) * 30, 0.0], bytes=[10, 10, 0])
    assert bits_per_byte(table, DRAWS).value == 2.0
    assert bits_per_byte(table.slice(2), DRAWS) is None


def test_distinct_4_counts_runs_over_all_answers():
    assert distinct_4(["a b c d e", "v w x y z"], DRAWS).value == 1.0
    assert distinct_4(["a b c d e"] * 10, DRAWS).value == pytest.approx(0.1)
    assert distinct_4(["a a a a a a a a"], DRAWS).value == pytest.approx(0.2)
    assert distinct_4(["too short"], DRAWS) is None


def test_pass_rates_of_sampled_answers():
    accepted = np.array([[True, False, False, False], [False] * 4, [True] * 4])
    found = pass_rates(accepted, ["a", "b", "c"], ["t"] * 3, 1.0, DRAWS)
    assert found.pass_at_1.value == pytest.approx(5 / 12, abs=1e-4) and found.pass_at_k.value == pytest.approx(
        2 / 3, abs=1e-4
    )
    assert (found.samples, found.prompts) == (4, 3)


def test_a_gain_on_the_same_prompts_is_better_and_swapping_the_models_turns_every_number():
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    a, b = (answers(list(map(bool, hard < level)), task=["x", "y", "z"] * 100) for level in (0.4, 0.5))
    done, back = paired(a, b, ("base", "sft"), DRAWS), paired(b, a, ("sft", "base"), DRAWS)
    assert done.verdict == "better" and back.verdict == "worse"
    assert done.macro.low > 0 and done.p_value < 0.01
    assert done.macro.value == pytest.approx(-back.macro.value) and done.p_value == back.p_value
    assert done.win_rate.value == pytest.approx(1 - back.win_rate.value)
    # Paired: the difference is known better than the two shares are.
    assert done.macro.high - done.macro.low < macro_exact(a, DRAWS).all.high - macro_exact(a, DRAWS).all.low
    same = paired(a, a, ("base", "base"), DRAWS)
    assert same.verdict == "not distinguishable" and same.win_rate.value == 0.5 and same.p_value == 1.0


def test_the_p_value_of_models_without_a_difference_is_uniform():
    rng = np.random.default_rng(3)
    values = []
    for _ in range(60):
        a, b = (answers(list(map(bool, rng.random(40) < 0.5))) for _ in range(2))
        values.append(paired(a, b, ("a", "b"), Draws(100, 1)).p_value)
    assert 0.25 < np.mean(np.array(values) <= 0.5) < 0.75
    assert np.mean(np.array(values) <= 0.05) < 0.2


def test_models_that_answered_other_prompts_are_not_compared():
    a = answers([True] * 4)
    b = a.set_column(0, "prompt", pa.array(["q1", "p0001", "p0002", "p0003"]))
    with pytest.raises(DataError, match="3 in common, 1 only of the first, 1 only of the second"):
        paired(a, b, ("a", "b"), DRAWS)
    shuffled = a.take([2, 0, 3, 1])
    assert same_prompts(a, shuffled)[1]["prompt"].to_pylist() == a["prompt"].to_pylist()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("score", [2.0, 0.0], "outside"),
        ("nats", [float("nan"), 1.0], "not finite"),
        ("prompt", ["p", "p"], "twice"),
    ],
)
def test_a_damaged_table_of_answers_is_refused(tmp_path, column, values, message):
    table = answers([True, False])
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_answers(tmp_path / "a.parquet").equals(table)
    at = SCHEMA.get_field_index(column)
    pq.write_table(
        table.set_column(at, SCHEMA.field(at), pa.array(values, SCHEMA.field(at).type)), tmp_path / "b.parquet"
    )
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "b.parquet")
    pq.write_table(table.drop_columns([column]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=f"no column {column}"):
        read_answers(tmp_path / "c.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="no answer"):
        read_answers(tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "e.parquet")


def test_an_interval_contains_its_value():
    rng = np.random.default_rng(4)
    for _ in range(20):
        found = macro(rng.random(30), list(rng.choice(["a", "b", "c"], 30)), [str(i) for i in range(30)], DRAWS)
        assert isinstance(found, Interval) and found.low <= found.value <= found.high
