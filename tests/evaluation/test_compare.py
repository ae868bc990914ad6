"""Paired comparison: sees what unpaired intervals cannot, cries no wolf, and refuses other text."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import tiny

from foundry.config import DataError
from foundry.evaluation.bits_per_byte import bits_per_byte_interval, score
from foundry.evaluation.compare import compare_documents
from foundry.evaluation.losses import losses_table, read_losses


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


def test_a_small_gain_on_every_document_is_found_although_the_two_intervals_overlap():
    rng, size, base = hard_and_easy()
    a, b = size * base, size * (base - 0.01 + rng.normal(0, 0.01, len(size)))
    got = compare_documents(table(a, size), table(b, size))
    assert got.verdict == "better" and got.p_value < 0.01 and got.overall.win_rate > 0.7
    assert got.overall.value == pytest.approx((b.sum() - a.sum()) / math.log(2) / size.sum(), abs=1e-6)
    assert got.overall.low < got.overall.value < got.overall.high < 0
    one, two = bits_per_byte_interval(a, size, 2000, 1), bits_per_byte_interval(b, size, 2000, 1)
    assert two.high > one.low  # unpaired they overlap
    assert (one.high - one.low) > 7 * (got.overall.high - got.overall.low)
    assert "better:" in got.sentence() and set(got.by_source) == {"one", "two"}
    back = compare_documents(table(b, size), table(a, size))
    assert back.verdict == "worse" and back.overall.value == -got.overall.value


def test_equal_models_are_called_different_in_about_5_percent_of_trials():
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
    "change, reported",
    [
        (lambda t: t.drop_columns(["nats"]), "no column nats"),
        (lambda t: t.set_column(5, "nats", pa.array(["many"] * len(t))), "has a column of another type"),
        (lambda t: t.slice(0, 0), "contains no document"),
        (lambda t: t.set_column(5, "nats", pa.array([math.nan] * len(t))), "not finite"),
    ],
)
def test_a_damaged_or_foreign_table_is_refused(tmp_path, change, reported):
    pq.write_table(change(table(np.ones(3))), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=reported):
        read_losses(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        read_losses(tmp_path / "t.parquet")


def test_scored_models_compare_like_their_bits_per_byte(held):
    good, bad = tiny(), tiny(seed=1)
    one, two = (losses_table(held, score(m, held.tokens, 32)) for m in (good, bad))
    got = compare_documents(one, two)
    assert got.overall.documents == len(held)
    assert got.overall.bits_b - got.overall.bits_a == pytest.approx(got.overall.value, abs=2e-6)


def test_models_are_named_by_table_folder_or_revision_and_scored_again_on_common_text(
    clean, shards, tokenizer, held, tmp_path, monkeypatch, capsys
):
    from foundry.cli import main
    from foundry.config import ConfigError, load_params
    from foundry.export.huggingface import export_huggingface
    from foundry.project.compare import noise_floor

    monkeypatch.chdir(tmp_path)
    shutil.copytree(clean, "data/clean")
    (tmp_path / "params.yaml").write_text(
        "download: {sources: [{name: one, url: 'file:corpus/x'}]}\nruntime: {experiment: none-such}\n"
    )
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    models = [tiny(seed, vocab_size=tokenizer.vocab_size) for seed in range(3)]
    for k, model in enumerate(models):
        export_huggingface(model, tokenizer, tmp_path / f"m{k}")
        pq.write_table(losses_table(held, score(model, held.tokens, 32)), tmp_path / f"m{k}.parquet")
    main(["compare", "m0.parquet", "m1.parquet", "--json"])
    tables = json.loads(capsys.readouterr().out)
    main(["compare", "m0", "m1", "--json"])  # scored now, from the raw text
    scored = json.loads(capsys.readouterr().out)
    assert scored["overall"]["value"] == pytest.approx(tables["overall"]["value"], abs=1e-5)
    assert scored["overall"]["documents"] == tables["overall"]["documents"] == len(held)
    assert tables["noise"] == {"runs": 0}
    (tmp_path / "m0/documents.parquet").write_bytes((tmp_path / "m0.parquet").read_bytes())
    pq.write_table(pq.read_table("m1.parquet").slice(1), "m1/documents.parquet")  # of other text: both are scored again
    main(["compare", "m0", "m1", "--json"])
    assert json.loads(capsys.readouterr().out)["overall"] == scored["overall"]
    with pytest.raises(SystemExit):
        main(["compare", "m0.parquet", "m1/documents.parquet"])
    assert "or name folders that contain the weights" in capsys.readouterr().err
    main(["compare", "m0", "m1", "--seeds", "m0.parquet", "m1.parquet", "m2"])
    assert "standard deviation of 3 runs" in capsys.readouterr().out
    bits = [bits_per_byte_interval(score(m, held.tokens, 32).nats, held.n_bytes, 100, 1).value for m in models]
    got = noise_floor(["m0.parquet", "m1.parquet", "m2"], load_params("params.yaml"))
    assert got.standard_deviation == pytest.approx(np.std(bits, ddof=1), abs=2e-4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main(["compare", "m0", "empty"])
    assert "is a folder without a model" in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match=r"is not a file, a folder.*\(.*[Uu]nknown Git revision 'nowhere'|not a git repo"
    ):
        noise_floor(["m0", "nowhere"], load_params("params.yaml"))


def test_runs_that_differ_only_in_their_seed_are_found_in_mlflow(tmp_path, monkeypatch):
    from foundry.tracking.seeds import seed_scores
    from foundry.tracking.settings import connect, experiment_id

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / ".foundry").mkdir()
    uri = f"sqlite:///{tmp_path}/.foundry/mlflow.db"
    client = connect(uri)
    where = experiment_id(client, uri, "seeds")
    for seed, lr, bpb in (
        (1, "0.1", 1.5),
        (2, "0.1", 1.6),
        (2, "0.1", 1.61),
        (3, "0.1", 1.7),
        (1, "0.2", 1.0),
        (4, "0.1", None),
    ):
        run = client.create_run(where).info.run_id
        client.log_param(run, "seed", str(seed))
        client.log_param(run, "train.lr", lr)
        if bpb:
            client.log_metric(run, "test_bits_per_byte", bpb)
    assert sorted(seed_scores(uri, "seeds")) == [1.5, 1.61, 1.7]  # the newer one of seed 2
    assert seed_scores(uri, "no such experiment") == []
