"""train.py as a command. Its bfloat16 is that of the processor, so these tests are not repeated with other kernels."""

import pytest
import torch
from tutorial_files import tutorial


@pytest.fixture
def page():
    return tutorial("train")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_command_trains_on_the_text_that_comes_with_it(page, tmp_path, monkeypatch, capsys, precision):
    text = page.HERE / "text/encyclopedia.txt"
    assert text.stat().st_size < 300_000 and "CC-BY-SA-4.0" in (page.HERE / "text/LICENSE.txt").read_text()
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 64}
    shape |= {"rope_theta": 500.0, "norm_eps": 1e-4, "tie_embeddings": True}
    assert shape.keys() == page.MODEL.keys()
    monkeypatch.setattr(page, "MODEL", shape)
    options = {"data": text, "out": tmp_path, "vocab-size": 512, "steps": 30, "precision": precision}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    page.main()
    shown = capsys.readouterr().out
    assert "expected first loss: ln V = 6.24" in shown and "bits per byte" in shown
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["config"] == {"vocab_size": 512, **shape} and saved["step"] == len(saved["curve"]) == 30
    losses = [loss for _, loss, _ in saved["curve"]]
    assert losses[0] == pytest.approx(6.24, abs=0.2) and losses[-1] < losses[0] - 0.5
    weights = saved["model"].values()
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights)  # AMP leaves the weights in float32
