"""llama.cpp would compute what the model computes; a format that cannot represent the weights is refused."""

import math

import gguf
import numpy as np
import pytest
import torch

from foundry.config import ExportError, ModelConfig
from foundry.export import export_gguf


class Llama:
    """llama.cpp's graphs of llama and qwen3 in float64, written from their definition: they read only the file."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        fields = {k: f.contents() for k, f in reader.fields.items()}
        self.arch = fields["general.architecture"]
        self.meta = {k.replace(f"{self.arch}.", "llama.", 1): v for k, v in fields.items()}
        self.w = {}
        for t in reader.tensors:
            shape = [int(n) for n in reversed(t.shape)]
            self.w[t.name] = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64).reshape(shape)

    def norm(self, x, name):
        eps = self.meta["llama.attention.layer_norm_rms_epsilon"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"]

    def rope(self, x):
        """(T, heads, D): pairs (2i, 2i + 1), with qwen3 (i, i + D / 2), are turned by position * base^(-2i / D)."""
        T, _, D = x.shape
        angle = np.arange(T)[:, None] * self.meta["llama.rope.freq_base"] ** (-np.arange(0, D, 2) / D)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = (slice(0, D // 2), slice(D // 2, D)) if self.arch == "qwen3" else (slice(0, D, 2), slice(1, D, 2))
        out = np.empty_like(x)
        out[..., a] = x[..., a] * cos - x[..., b] * sin
        out[..., b] = x[..., a] * sin + x[..., b] * cos
        return out

    def __call__(self, tokens):
        H, K = self.meta["llama.attention.head_count"], self.meta["llama.attention.head_count_kv"]
        D, T = self.meta["llama.attention.key_length"], len(tokens)
        x = self.w["token_embd.weight"][tokens]
        for i in range(self.meta["llama.block_count"]):
            h = self.norm(x, f"blk.{i}.attn_norm")
            q, k, v = ((h @ self.w[f"blk.{i}.attn_{n}.weight"].T).reshape(T, -1, D) for n in "qkv")
            if self.arch == "qwen3":
                q, k = self.norm(q, f"blk.{i}.attn_q_norm"), self.norm(k, f"blk.{i}.attn_k_norm")
            q, k = self.rope(q), self.rope(k)
            y = np.empty((T, H, D))
            for head in range(H):
                kv = head // (H // K)
                scores = q[:, head] @ k[:, kv].T / math.sqrt(D)
                scores[np.triu_indices(T, 1)] = -np.inf
                p = np.exp(scores - scores.max(-1, keepdims=True))
                y[:, head] = p / p.sum(-1, keepdims=True) @ v[:, kv]
            x = x + y.reshape(T, -1) @ self.w[f"blk.{i}.attn_output.weight"].T
            h = self.norm(x, f"blk.{i}.ffn_norm")
            gate, up = (h @ self.w[f"blk.{i}.ffn_{n}.weight"].T for n in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.w[f"blk.{i}.ffn_down.weight"].T
        return self.norm(x, "output_norm") @ self.w.get("output.weight", self.w["token_embd.weight"]).T


def logits(model, tokens):
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0][0].double().numpy()


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}, {"qk_norm": True}])
def test_what_llama_cpp_computes_from_the_file_is_what_the_model_computes(
    make_model, model, tokenizer, tmp_path, options
):
    model = make_model(model.cfg.model_copy(update=options), seed=2)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    tokens = torch.randint(400, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    ours = logits(model, tokens)
    np.testing.assert_allclose(Llama(tmp_path / "m.gguf")(tokens), ours, atol=1e-4)
    assert np.abs(ours).max() > 1


def test_without_the_permutation_it_would_compute_something_else(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("foundry.export.gguf_file.interleave", lambda w, heads: w)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    tokens = list(range(60))
    assert np.abs(Llama(tmp_path / "m.gguf")(tokens) - logits(model, tokens)).max() > 0.5


def test_the_file_is_the_same_bytes_again(model, tokenizer, tmp_path):
    for name in "ab":
        export_gguf(model, tokenizer, tmp_path / name / "m.gguf", "q8_0", "m")
    assert (tmp_path / "a/m.gguf").read_bytes() == (tmp_path / "b/m.gguf").read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["m.gguf"]


def test_a_format_that_cannot_represent_the_weights_is_refused_and_leaves_nothing(
    make_model, model, tokenizer, tmp_path
):
    narrow = make_model(
        ModelConfig(vocab_size=400, dim=48, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=64, max_seq_len=8)
    )
    with pytest.raises(ExportError, match="rows of 48 numbers, but q8_0 needs multiples of 32"):
        export_gguf(narrow, tokenizer, tmp_path / "m.gguf", "q8_0", "m")
    with torch.no_grad():
        narrow.layers[0].ffn.w_up.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"ffn_up.weight has a value of 100000, which f16 cannot represent"):
        export_gguf(narrow, tokenizer, tmp_path / "m.gguf", "f16", "m")
    export_gguf(narrow, tokenizer, tmp_path / "complete.gguf", "bf16", "m")
    with torch.no_grad():
        narrow.layers[0].ffn.w_up.weight[0, 0] = math.nan
    with pytest.raises(ExportError, match="value of nan"):
        export_gguf(narrow, tokenizer, tmp_path / "m.gguf", "f32", "m")
    with pytest.raises(ValueError, match="kind must be one of f32, f16, bf16, q8_0, q4_0, got 'q4'"):
        export_gguf(model, tokenizer, tmp_path / "m.gguf", "q4", "m")
    assert [p.name for p in tmp_path.iterdir()] == ["complete.gguf"]
