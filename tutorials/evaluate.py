"""Tutorial 4: how good is the model, and how sure are we? / 教程四：模型有多好，我们又有多大把握？

    python tutorials/evaluate.py                        # 测试文本的 bits per byte / of the test text
    python tutorials/evaluate.py --against other/out    # 两个模型谁更好 / which of two models is better

One file that imports neither foundry nor another tutorial. It reads `model.pt`, `tokenizer.model` and the documents of
`held_out.json`, which training never saw. Value and interval are those of `foundry.evaluation`.
只有这一个文件，不导入 foundry，也不导入别的教程。它读取 `model.pt`、`tokenizer.model`，以及训练从未见过的
`held_out.json` 里的文档；数值和区间与 `foundry.evaluation` 相同。

为什么是 bits per byte？每个 token 的损失取决于分词器：词表越大，token 越少，每个 token 越难。除以原文的字节数以后，
分词器不同的模型也能比较，还能与压缩程序比较：它就是用这个模型压缩文本所需的比特数。
Why bits per byte? The loss of a token depends on the tokenizer: with a larger vocabulary there are fewer tokens, and
each is harder. Divided by the bytes of the text, models with other tokenizers compare, and so do compressors: it is the
number of bits that the model needs to compress the text.
"""

import argparse
import json
import lzma
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from torch import nn


# 1. 模型，与 train.py 相同 / The model, as in train.py --------------------------------------------------------------
class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, head_dim = c["n_heads"], c["n_kv_heads"], c["dim"] // c["n_heads"]
        self.wq = nn.Linear(c["dim"], self.heads * head_dim, bias=False)
        self.wk = nn.Linear(c["dim"], self.kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(c["dim"], self.kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(self.heads * head_dim, c["dim"], bias=False)

    def forward(self, x, cos, sin):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.wk(x).view(B, T, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.wv(x).view(B, T, self.kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w_gate = nn.Linear(c["dim"], c["ffn_dim"], bias=False)
        self.w_up = nn.Linear(c["dim"], c["ffn_dim"], bias=False)
        self.w_down = nn.Linear(c["ffn_dim"], c["dim"], bias=False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(c["dim"], c["norm_eps"]), Attention(c)
        self.ffn_norm, self.ffn = RMSNorm(c["dim"], c["norm_eps"]), SwiGLU(c)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.tok_embeddings = nn.Embedding(c["vocab_size"], c["dim"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["n_layers"]))
        self.norm = RMSNorm(c["dim"], c["norm_eps"])
        self.output = None if c["tie_embeddings"] else nn.Linear(c["dim"], c["vocab_size"], bias=False)
        half = c["dim"] // c["n_heads"] // 2
        freqs = c["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(c["max_seq_len"], dtype=torch.float32), freqs)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens):
        """(B, T) → logits (B, T, V)."""
        x, T = self.tok_embeddings(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return F.linear(self.norm(x), self.tok_embeddings.weight if self.output is None else self.output.weight)


def load(folder):
    """(模型, 分词器)。结构由文件里的 config 决定，从不用默认值。 The file's config decides the architecture."""
    folder = Path(folder)
    for name in ("model.pt", "tokenizer.model"):
        if not (folder / name).is_file():
            sys.exit(f"{folder / name} does not exist: run `python tutorials/train.py --out {folder}` first")
    saved = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    if unknown := [k for k in ("qk_norm", "logit_softcap", "sliding_window") if saved["config"].get(k)]:
        sys.exit(f"{folder / 'model.pt'} uses {', '.join(unknown)}, which this tutorial does not compute: use foundry")
    model = Model(saved["config"])
    model.load_state_dict({name: value.float() for name, value in saved["model"].items()})
    return model.eval(), SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


# 2. 计分 / Scoring -------------------------------------------------------------------------------------------------
@torch.inference_mode()
def nats(model, ids):
    """一篇文档的 -ln 概率。每个 token 恰好计分一次，结束符不计。
    Minus the log-probability of one document. Each token of its text is scored exactly once, the end symbol never.

    文档比上下文长时分成窗口；最后一个窗口往回伸，直到装满，这样它的 token 也有上文。
    A document that is longer than the context is cut into windows. The last one reaches back until it is full, so that
    its tokens, too, have text before them; what was scored before is not counted again."""
    length, n, total, scored = model.config["max_seq_len"], len(ids) - 2, 0.0, 0
    while scored < n:
        begin = max(0, min(scored, n - length))
        window = torch.tensor(ids[begin : min(begin + length, n) + 1])
        each = F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
        total += each[scored - begin :].double().sum().item()
        scored = begin + len(window) - 1
    return total


def score(model, tokenizer, documents):
    """(nats, 字节, token 数)，每篇文档一个。 (nats, bytes, tokens) of each document."""
    encoded = [[tokenizer.bos_id(), *ids, tokenizer.eos_id()] for ids in tokenizer.encode(documents)]
    return (
        np.array([nats(model, ids) for ids in encoded]),
        # 字节数来自原文，不来自解码后的 token。 Bytes are those of the text, not of decoded tokens.
        np.array([len(text.encode()) for text in documents]),
        np.array([len(ids) - 2 for ids in encoded]),
    )


# 3. 区间 / The interval --------------------------------------------------------------------------------------------
# 换一批测试文档，数值会变多少？自助法（Efron 1979）：有放回地重抽文档，重算，看 95% 的结果落在哪里。
# 抽的是文档，不是 token：同一篇文档里的 token 彼此相关，当作独立的会让区间太窄。
# How much would the number change with other test documents? The bootstrap (Efron 1979) draws documents with
# replacement, computes the number again, and looks where 95 % of the results are. Documents are drawn, not tokens:
# tokens of one document depend on each other, and the interval would be too narrow.
def interval(statistic, documents, resamples, seed):
    """(下限, 上限)。 (lower end, upper end) of 95 %: `statistic` takes the numbers of the drawn documents."""
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.integers(0, documents, documents)) for _ in range(resamples)]
    return tuple(float(x) for x in np.percentile(draws, (2.5, 97.5)))


def bits_per_byte(total_nats, n_bytes, resamples=2000, seed=1):
    """(数值, 下限, 上限)。 (value, lower end, upper end)."""

    def ratio(drawn):
        return total_nats[drawn].sum() / math.log(2) / n_bytes[drawn].sum()

    return float(ratio(slice(None))), *interval(ratio, len(n_bytes), resamples, seed)


def difference(ours, theirs, n_bytes, resamples=2000, seed=1):
    """两个模型的差，配对：每次重抽对两者用同样的文档，难的文档对两者都难，所以抵消了。
    The difference of two models, paired: each draw takes the same documents for both. A hard document is hard for both,
    which cancels, so the interval of the difference is much narrower than those of the two values."""
    return bits_per_byte(ours - theirs, n_bytes, resamples, seed)


def main():
    out = Path(__file__).resolve().parent / "out"
    parser = argparse.ArgumentParser(description="bits per byte of the test text, with an interval")
    parser.add_argument("--model", type=Path, default=out, help="folder (default: %(default)s)")
    parser.add_argument("--against", type=Path, help="folder of another model, on the same documents")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (default: %(default)s)")
    a = parser.parse_args()
    model, tokenizer = load(a.model)
    if not (a.model / "held_out.json").is_file():
        sys.exit(f"{a.model / 'held_out.json'} does not exist: evaluate a folder that tutorials/train.py wrote")
    documents = json.loads((a.model / "held_out.json").read_text())["test"]
    if a.against and json.loads((a.against / "held_out.json").read_text())["test"] != documents:
        # 另一个模型也许正是在这些文档上训练的。 The other model may have been trained on these documents.
        sys.exit(f"{a.against} has other test documents than {a.model}: train both on the same text")
    total, n_bytes, n_tokens = score(model, tokenizer, documents)
    value, low, high = bits_per_byte(total, n_bytes, seed=a.seed)
    print(f"{len(documents)} test documents, {n_bytes.sum():,} bytes, {n_tokens.sum():,} tokens")
    print(f"model      {value:.4f} bits per byte, 95 % interval {low:.4f} to {high:.4f}")
    print(f"           perplexity of a token: {math.exp(total.sum() / n_tokens.sum()):.2f}")
    # 一个参照：压缩程序没有见过训练文本。 Something to compare with: a compressor has not seen the training text.
    packed = len(lzma.compress("\n".join(documents).encode(), preset=9))
    print(f"lzma       {8 * packed / n_bytes.sum():.4f} bits per byte")
    order = np.argsort(total / n_bytes)
    for name, i in (("easiest", order[0]), ("hardest", order[-1])):
        print(f"{name}    {total[i] / math.log(2) / n_bytes[i]:.2f}  {documents[i][:70]!r}")
    if a.against:
        other, _, _ = score(*load(a.against), documents)
        value, low, high = difference(total, other, n_bytes, seed=a.seed)
        verdict = "no difference is shown" if low <= 0 <= high else f"{'this' if high < 0 else 'the other'} is better"
        print(f"difference {value:+.4f} bits per byte, 95 % interval {low:+.4f} to {high:+.4f}: {verdict}")


if __name__ == "__main__":
    main()
