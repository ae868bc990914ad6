"""Paired comparison: sees what unpaired intervals cannot, cries no wolf, and refuses other text."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import tiny

from foundry.config import DataError
from foundry.evaluation.bits_per_byte import interval, losses_table, score
from foundry.evaluation.compare import compare_documents, read_documents


def table(nats, n_bytes=None, sources=None):
    n = len(nats)
    n_bytes = np.full(n, 1000) if n_bytes is None else n_bytes
    sources = sources or ["one" if i % 2 else "two" for i in range(n)]
    ids = [f"{i:016x}" for i in range(n)]
    return pa.table(
        {"doc_id": ids, "source": sources, "lang": ["en"] * n, "n_bytes": n_bytes, "tokens": n_bytes // 3, "nats": nats}
    )


def hard_and_easy(n=150, seed=0):
    rng = np.random.default_rng(seed)
    return rng, rng.integers(300, 3000, n), rng.normal(1.1, 0.25, n)


def test_a_small_gain_on_every_document_is_seen_though_the_two_intervals_overlap():
    rng, size, base = hard_and_easy()
    a, b = size * base, size * (base - 0.01 + rng.normal(0, 0.01, len(size)))
    got = compare_documents(table(a, size), table(b, size))
    assert got.verdict == "better" and got.p_value < 0.01 and got.overall.win_rate > 0.7
    assert got.overall.value == pytest.approx((b.sum() - a.sum()) / math.log(2) / size.sum(), abs=1e-6)
    assert got.overall.low < got.overall.value < got.overall.high < 0
    one, two = interval(a, size, 2000, 1), interval(b, size, 2000, 1)
    assert two["high"] > one["low"]  # unpaired they overlap
    assert (one["high"] - one["low"]) > 7 * (got.overall.high - got.overall.low)
    assert "better:" in got.sentence() and set(got.by_source) == {"one", "two"}
    back = compare_documents(table(b, size), table(a, size))
    assert back.verdict == "worse" and back.overall.value == -got.overall.value


def test_equal_models_are_called_different_about_as_seldom_as_promised():
    called, p = 0, []
    for trial in range(150):
        rng, size, base = hard_and_easy(80, trial)
        a, b = (size * (base + rng.normal(0, 0.03, 80)) for _ in range(2))
        got = compare_documents(table(a, size), table(b, size), resamples=200, seed=trial)
        called += got.verdict != "not distinguishable"
        p.append(got.p_value)
    assert called <= 18  # 7.5 expected; three standard errors of 150 draws and the percentile interval's excess
    assert 0.35 < np.mean(p) < 0.65  # uniform


def test_a_model_compared_with_itself_is_not_distinguishable():
    _, size, base = hard_and_easy()
    got = compare_documents(table(size * base, size), table(size * base, size))
    assert (got.verdict, got.p_value, got.overall.value, got.overall.win_rate) == ("not distinguishable", 1.0, 0.0, 0.5)


def test_the_order_of_documents_does_not_matter_but_the_documents_do():
    _, size, base = hard_and_easy()
    a, b = table(size * base, size), table(size * base * 0.99, size)
    shuffled = b.take(np.random.default_rng(0).permutation(len(b)))
    assert compare_documents(a, shuffled) == compare_documents(a, b)
    with pytest.raises(DataError, match="149 documents in common, 1 only with the first, 0 only with the second"):
        compare_documents(a, b.slice(1))
    with pytest.raises(DataError, match="same text"):
        compare_documents(a, table(size * base, size + 1))


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t.drop_columns(["nats"]), "no column nats"),
        (lambda t: t.slice(0, 0), "holds no document"),
        (lambda t: t.set_column(5, "nats", pa.array([math.nan] * len(t))), "not finite"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, change, told):
    pq.write_table(change(table(np.ones(3))), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=told):
        read_documents(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(tmp_path / "t.parquet")


def test_scored_models_compare_like_their_bits_per_byte(held):
    good, bad = tiny(), tiny(seed=1)
    one, two = (losses_table(held, score(m, held.tokens, 32)) for m in (good, bad))
    got = compare_documents(one, two)
    assert got.overall.documents == len(held)
    assert got.overall.bits_b - got.overall.bits_a == pytest.approx(got.overall.value, abs=2e-6)
