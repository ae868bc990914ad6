"""Tutorial 1: from text to a language model. / 教程一：从文本到语言模型。

    python tutorials/train.py                  # 训练；中断后用同一命令继续 / train; the same command resumes
    python tutorials/train.py --data my.txt    # 用自己的文本 / a text of your own

One file that imports neither foundry nor another tutorial. It writes a folder (`--out`): `model.pt`, `tokenizer.model`,
`tokens.npy` (the training text) and `held_out.json` (documents that training never sees).
With the same seed, data and steps in float32 each loss is the package's, up to rounding.
只有这一个文件，不导入 foundry，也不导入别的教程。它把结果写进一个文件夹（`--out`）。
种子、数据、步数相同并使用 float32 时，每一步的损失都与 foundry 的相同，只差舍入误差。
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import nn

HERE, Linear = Path(__file__).resolve().parent, partial(nn.Linear, bias=False)
MODEL = {"dim": 256, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 512, "max_seq_len": 256}
MODEL |= {"rope_theta": 10_000.0, "norm_eps": 1e-5, "tie_embeddings": True}
RECIPE = {"seed": 1, "steps": 600, "rows": 8, "lr": 5e-3, "matrix_lr": 0.02, "weight_decay": 0.1, "warmup_steps": 20}
RECIPE |= {"decay_fraction": 0.6, "grad_clip": 1.0, "eval_tokens": 8192}


# 1. 文本 / Text ---------------------------------------------------------------------------------------------------
def read_documents(path):
    """{"train": […], "val": […], "test": […]}：foundry 的 data/clean，或空两行分隔文档的文本文件。
    The documents of foundry's data/clean, or of a text file in which two empty lines separate documents."""
    if path.is_dir():
        import pyarrow.parquet as pq

        parts = {split: sorted((path / split).glob("part-*.parquet")) for split in ("train", "val", "test")}
        return {k: [t for f in files for t in pq.read_table(f, columns=["text"])["text"].to_pylist()]
                for k, files in parts.items()}  # fmt: skip
    texts = [t.strip() for t in path.read_text(encoding="utf-8").split("\n\n\n") if t.strip()]
    # 要测量的文本绝不能参与训练，否则靠背诵也能得分。 What is measured is never trained on: memory would score.
    return {"train": [t for i, t in enumerate(texts) if i % 20 > 1], "val": texts[0::20], "test": texts[1::20]}


def train_tokenizer(texts, vocab_size, path):
    """BPE 分词器：反复合并最常见的相邻对。设置与 foundry 相同，所以 id 也相同。
    A BPE tokenizer merges the most frequent neighbours again and again. The settings, and so the ids, are foundry's."""
    lines = (line for text in texts for line in text.split("\n") if line)
    # SentencePiece 会悄悄丢掉过长的行，所以切开。 SentencePiece silently drops lines that are too long: they are cut.
    pieces = (x for s in lines for x in ([s] if len(s.encode()) < 4096 else re.findall(".{1,1000}", s)))
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=pieces, model_writer=file, model_type="bpe", vocab_size=vocab_size,
            character_coverage=0.9995, byte_fallback=True,  # 生僻字拆成字节 / rare characters become bytes
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,  # 原文不变
            split_digits=True, allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
            control_symbols=["<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(14))],  # chat.py
            max_sentence_length=4192, num_threads=1, minloglevel=2,
        )  # fmt: skip


# 2. 批次 / Batches ------------------------------------------------------------------------------------------------
# 第 N 步的批次只取决于（数据，种子，N），不取决于任何状态：所以恢复训练只需要记住 N。
# The batch of step N is a function of (data, seed, N) and of no state: to resume, only N has to be remembered.
def mix(x):
    """SplitMix64：把一个 64 位整数打乱。 It scrambles a 64-bit integer."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def place(i, n, k):
    """[0, n) 的一个排列，不必存下来：四轮 Feistel 网络，落在范围外就再走一次。
    A permutation of [0, n) without a table: four rounds of a Feistel network, walked again while beyond the range."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    while True:
        left, right = i >> half, i & (1 << half) - 1
        for r in range(1, 5):
            left, right = right, left ^ mix(right ^ mix(k ^ r)) & (1 << half) - 1
        i = left << half | right
        if i < n:
            return i


def batch(tokens, step, rows, length, seed):
    """(输入, 目标)，各 (rows, length)：文本是一个环，切成窗口，每一轮换一个起点和次序。
    (inputs, targets): the text is a ring that is cut into windows; each epoch has its own begin and order."""
    size, windows, out = len(tokens), len(tokens) // length, []
    for n in range(step * rows, (step + 1) * rows):
        epoch, i = divmod(n, windows)
        k = mix(mix(seed) ^ mix(epoch))
        start = place(i, windows, k) * length + mix(k ^ mix(1)) % size
        out.append(tokens[(start + np.arange(length + 1)) % size])
    x = torch.from_numpy(np.stack(out).astype(np.int64))
    return x[:, :-1], x[:, 1:]  # 目标就是下一个 token / the target is the next token


# 3. 模型 / The model ----------------------------------------------------------------------------------------------
def rotate(x, cos, sin):
    """RoPE（arXiv:2104.09864）：按位置转动，点积就只取决于距离。 Rotated by position, products depend on distance."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, head_dim = c["n_heads"], c["n_kv_heads"], c["dim"] // c["n_heads"]
        # GQA（arXiv:2305.13245）：几个查询头共用一对 k、v，生成时缓存更小。 Query heads share keys and values.
        self.wq = Linear(c["dim"], self.heads * head_dim)
        self.wk, self.wv = (Linear(c["dim"], self.kv_heads * head_dim) for _ in range(2))
        self.wo = Linear(self.heads * head_dim, c["dim"])

    def forward(self, x, cos, sin):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.wk(x).view(B, T, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.wv(x).view(B, T, self.kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        # RMSNorm（arXiv:1910.07467）：x / sqrt(mean(x²) + eps) * weight，不减均值 / no mean is subtracted
        self.attention_norm, self.attention = nn.RMSNorm(c["dim"], c["norm_eps"]), Attention(c)
        self.ffn_norm = nn.RMSNorm(c["dim"], c["norm_eps"])
        shapes = {
            "w_gate": (c["dim"], c["ffn_dim"]),
            "w_up": (c["dim"], c["ffn_dim"]),
            "w_down": (c["ffn_dim"], c["dim"]),
        }
        self.ffn = nn.ModuleDict({name: Linear(*shape) for name, shape in shapes.items()})

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h, ffn = self.ffn_norm(x), self.ffn  # SwiGLU（arXiv:2002.05202）：一半作另一半的门 / one half gates the other
        return x + ffn["w_down"](F.silu(ffn["w_gate"](h)) * ffn["w_up"](h))


class Model(nn.Module):
    """参数名与 foundry/models/transformer.py 相同。 The parameters have the names of the package's model."""

    def __init__(self, c):
        super().__init__()
        self.tok_embeddings = nn.Embedding(c["vocab_size"], c["dim"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["n_layers"]))
        self.norm = nn.RMSNorm(c["dim"], c["norm_eps"])
        half = c["dim"] // c["n_heads"] // 2
        freqs = c["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(c["max_seq_len"], dtype=torch.float32), freqs)
        self.cos, self.sin = angles.cos(), angles.sin()
        # 输出到残差流的矩阵从 0 开始：每层开始时什么都不做，第一步的损失约为 ln V。
        # Outputs to the residual stream begin at 0: a block first does nothing, and the first loss is about ln V.
        nn.init.normal_(self.tok_embeddings.weight, std=0.02)
        for b in self.layers:
            for m in (b.attention.wq, b.attention.wk, b.attention.wv, b.ffn["w_gate"], b.ffn["w_up"]):
                nn.init.normal_(m.weight, std=1 / math.sqrt(m.in_features))
            for m in (b.attention.wo, b.ffn["w_down"]):
                nn.init.zeros_(m.weight)

    def forward(self, tokens):
        """(B, T) 个 token → logits (B, T, V)。输出层就是嵌入矩阵，省一半参数。 The head is the embedding's matrix."""
        x, T = self.tok_embeddings(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return F.linear(self.norm(x), self.tok_embeddings.weight)


# 4. 优化器 / The optimizer ----------------------------------------------------------------------------------------
def orthogonal(x):
    """奇数多项式迭代五次，奇异值都变得接近 1，只用矩阵乘法。 Five times an odd polynomial: singular values near 1."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return x


@torch.no_grad()
def update(model, state, step, r, dtype):
    """Muon（Jordan 等，2024）更新各层的矩阵：每个方向都学，而不只是最强的几个；其余用 AdamW（arXiv:1711.05101）。
    Muon for matrices of the layers: every direction is learnt, not only the strongest. AdamW for the rest."""
    # WSD（arXiv:2404.06395）：学习率先预热，再稳定，最后线性降到 0。 Warm-up, a stable phase, linear decay to 0.
    left = (r["steps"] - step) / max(1, round(r["decay_fraction"] * r["steps"]))
    factor = min((step + 1) / (r["warmup_steps"] + 1), 1.0, left)
    for name, p, g in ((name, p, p.grad) for name, p in model.named_parameters()):
        if name.startswith("layers.") and p.ndim == 2:
            momentum = state.setdefault(name, torch.zeros_like(p)).lerp_(g, 0.05)
            direction = orthogonal(g.lerp(momentum, 0.95).to(dtype)).to(p.dtype)  # Nesterov
            p.mul_(1 - factor * r["matrix_lr"] * r["weight_decay"])
            p.sub_(direction, alpha=factor * r["matrix_lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
        else:
            mean, square = state.setdefault(name, torch.zeros(2, *p.shape))
            mean.lerp_(g, 0.1)
            square.lerp_(g * g, 0.05)
            size = (square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8  # 平均值从 0 开始，要修正 / begun at 0: corrected
            p.sub_(mean / (1 - 0.9 ** (step + 1)) / size, alpha=factor * r["lr"])
        p.grad = None


# 5. 训练 / Training -----------------------------------------------------------------------------------------------
@torch.inference_mode()
def bits_per_byte(model, documents, n_bytes, length):
    """每篇文档单独计分，除以原文的字节数：分词器不同的模型也能比较。
    Each document is scored by itself, and divided by bytes of text, so that other tokenizers compare, too."""
    nats = 0.0
    for ids in documents:
        for start in range(0, len(ids) - 2, length):  # 结束符不是文本，不计分 / the end symbol is no text
            x = torch.tensor(ids[start : min(start + length, len(ids) - 2) + 1])
            nats += F.cross_entropy(model(x[None, :-1])[0].float(), x[1:], reduction="sum").item()
    return nats / math.log(2) / sum(n_bytes)


def train(out, documents, config, r, dtype, save_every=100, eval_every=200):
    """每一步产出 (步, 损失, 验证的 bits per byte 或 None)。 Yields (step, loss, bits per byte or None) of each step."""
    out.mkdir(parents=True, exist_ok=True)
    model_file, text = out / "model.pt", hashlib.sha256(json.dumps(documents).encode()).hexdigest()
    settings = {"text": text, "config": config, "recipe": r, "precision": str(dtype)}
    saved = torch.load(model_file, weights_only=True) if model_file.exists() else None
    if saved and saved["settings"] != settings:
        differ = ", ".join(k for k in settings if settings[k] != saved["settings"][k])
        sys.exit(f"{model_file} is of a training with another {differ}: choose another --out, or delete that file")
    if not saved:
        train_tokenizer(documents["train"], config["vocab_size"], out / "tokenizer.model")
        (out / "held_out.json").write_text(json.dumps({k: documents[k] for k in ("val", "test")}))
    tokenizer = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    # 每篇文档都有起始符 1 和结束符 2。 Each document has a begin symbol, 1, and an end symbol, 2.
    tokens, held_out = ([[1, *ids, 2] for ids in tokenizer.encode(documents[k])] for k in ("train", "val"))
    tokens = np.concatenate([np.array(ids, np.uint16) for ids in tokens])
    np.save(out / "tokens.npy", tokens)
    every = max(1, math.ceil(sum(map(len, held_out)) / r["eval_tokens"]))
    held_out, held_out_bytes = held_out[::every], [len(t.encode()) for t in documents["val"][::every]]
    torch.manual_seed(r["seed"])
    torch.set_flush_denormal(True)  # 极小的数会让 CPU 慢很多倍 / numbers near 0 would slow a CPU down many times
    model = Model(config)
    begin, state, curve = 0, {}, []
    if saved:  # 恢复全部状态：每一位都与没有中断过的训练相同 / the whole state: the same bits as without the stop
        model.load_state_dict(saved["model"])
        begin, state, curve = saved["step"], saved["optimizer"], saved["curve"]
    # AMP：矩阵乘法用 bfloat16，权重、残差流、损失仍是 float32。 Products in bfloat16; weights and sums in float32.
    amp = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    for step in range(begin, r["steps"]):
        x, y = batch(tokens, step, r["rows"], config["max_seq_len"], r["seed"])
        with amp:
            loss = F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), r["grad_clip"])
        update(model, state, step, r, dtype)
        done, bits = step + 1, None
        if done % eval_every == 0 or done == r["steps"]:
            with amp:
                bits = bits_per_byte(model, held_out, held_out_bytes, config["max_seq_len"])
        curve.append((done, loss.item(), bits))
        if done % save_every == 0 or done == r["steps"]:
            saved = {"config": config, "model": model.state_dict(), "optimizer": state, "step": done, "curve": curve}
            torch.save(saved | {"settings": settings}, out / "model.pt.new")
            os.replace(out / "model.pt.new", model_file)  # 要么旧的，要么新的，绝不会只写一半 / never half a file
        yield curve[-1]


def main():
    clean, shipped = HERE.parent / "data/clean", HERE / "text/encyclopedia.txt"
    parser = argparse.ArgumentParser(description="train a small language model")
    parser.add_argument("--data", type=Path, default=clean if clean.is_dir() else shipped, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="default: %(default)s")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    for name, default in (("--vocab-size", 2048), ("--steps", RECIPE["steps"]), ("--seed", RECIPE["seed"])):
        parser.add_argument(name, type=int, default=default, help="default: %(default)s")
    a = parser.parse_args()
    # 没有硬件支持的 bfloat16 比 float32 慢十倍。 Without hardware for it, bfloat16 is ten times slower than float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    dtype = torch.bfloat16 if a.precision == "bfloat16" or (a.precision == "auto" and native) else torch.float32
    recipe, config = RECIPE | {"steps": a.steps, "seed": a.seed}, {"vocab_size": a.vocab_size, **MODEL}
    print(f"text: {a.data}; out: {a.out}; expected first loss: ln V = {math.log(a.vocab_size):.2f}")
    began = time.perf_counter()
    for step, loss, bits in train(a.out, read_documents(a.data), config, recipe, dtype):
        if step % 50 == 0 or bits or step == 1:
            measured = f"  validation: {bits:.3f} bits per byte" if bits else ""
            print(f"step {step:5}  loss {loss:.3f}  {time.perf_counter() - began:4.0f} s{measured}", flush=True)
    curve = torch.load(a.out / "model.pt", weights_only=True)["curve"]
    means = [np.mean(part) for part in np.array_split([c[1] for c in curve], min(60, len(curve)))]
    print("".join("▁▂▃▄▅▆▇█"[round(7 * (m - min(means)) / (max(means) - min(means) or 1))] for m in means))
    print(f"wrote {a.out}: next, python tutorials/generate.py --model {a.out}")


if __name__ == "__main__":
    main()
