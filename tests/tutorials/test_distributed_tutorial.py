"""tutorials/distributed.py: several processes follow the curve of tutorials/train.py, which is the package's."""

import shutil
import subprocess
import sys

import pytest
import torch
from tutorial_files import TUTORIALS, tutorial

CONFIG = {"vocab_size": 400, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 64}
CONFIG |= {"rope_theta": 500.0, "norm_eps": 1e-4, "tie_embeddings": True}
STEPS = 6


@pytest.fixture(scope="module")
def learnt(clean, tmp_path_factory):
    """(the folder of a training by tutorials/train.py, its losses)."""
    page, out = tutorial("train"), tmp_path_factory.mktemp("tutorial")
    recipe = page.RECIPE | {"seed": 5, "steps": STEPS, "rows": 4, "warmup_steps": 1, "eval_tokens": 400}
    curve = list(page.train(out, page.read_documents(clean), CONFIG, recipe, torch.float32))
    return out, [loss for _, loss, _ in curve]


def test_three_processes_with_unequal_parts_follow_the_curve_of_train(learnt):
    """4 rows: one process has 2 and two have 1. To 1e-5: sums are taken in another order, and six steps follow."""
    shared = tutorial("distributed")
    assert [len(shared.share(torch.arange(4), rank, 3)) for rank in range(3)] == [1, 1, 2]
    command = [sys.executable, TUTORIALS / "distributed.py", "--model", learnt[0]]
    done = subprocess.run([*command, "--steps", str(STEPS), "--nproc", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line[:4].strip().isdigit()]
    assert len(rows) == STEPS
    for (_, one, three, _), expected in zip(rows, learnt[1], strict=True):
        assert float(one) == pytest.approx(expected, rel=1e-5)
        assert float(three) == pytest.approx(expected, rel=1e-5)
    assert "weights of all processes: the same bits" in done.stdout


def test_buckets_hold_every_parameter_once_and_are_sent_in_their_order(learnt, tmp_path, monkeypatch):
    page = tutorial("distributed")
    model, sums = page.Model(CONFIG), []

    class Sum:
        def wait(self):
            pass

    def all_reduce(flat, async_op):
        sums.append(flat.clone())
        flat.mul_(2)  # as if another process had the same gradient
        return Sum()

    monkeypatch.setattr(page.dist, "broadcast", lambda tensor, src: None)
    monkeypatch.setattr(page.dist, "all_reduce", all_reduce)
    parallel = page.DataParallel(model, bucket_bytes=1 << 14)
    sizes = [sum(p.numel() for p in bucket) for bucket in parallel.buckets]
    assert len(sizes) > 4 and sum(sizes) == sum(p.numel() for p in model.parameters())
    x = torch.arange(40).view(2, 20)
    for _ in range(2):
        sums.clear()
        model.zero_grad()
        model(x).square().sum().backward()
        assert [len(s) for s in sums] == sizes
        before = torch.cat([p.grad.flatten() for bucket in parallel.buckets for p in bucket])
        parallel.finish()
        after = torch.cat([p.grad.flatten() for bucket in parallel.buckets for p in bucket])
        assert before.any() and torch.equal(after, 2 * before)


def test_more_processes_than_rows_and_a_missing_folder_are_refused(learnt, tmp_path, monkeypatch, capsys):
    page = tutorial("distributed")
    monkeypatch.setattr(sys, "argv", ["distributed.py", "--model", str(learnt[0]), "--nproc", "5"])
    with pytest.raises(SystemExit):
        page.main()
    assert "--nproc must be from 1 to 4" in capsys.readouterr().err
    shutil.copy(learnt[0] / "model.pt", tmp_path)
    monkeypatch.setattr(sys, "argv", ["distributed.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"tokens\.npy does not exist"):
        page.main()
