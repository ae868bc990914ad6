"""Tutorial 2: text from the model that train.py wrote. / 教程二：用 train.py 训练出的模型生成文本。

    python tutorials/generate.py "The "                      # 采样 / sampling
    python tutorials/generate.py "The " --temperature 0      # 贪心 / greedy
    python tutorials/generate.py "The " --no-cache           # 同样的文本，慢得多 / the same text, much slower

One file that imports neither foundry nor another tutorial. It reads `model.pt` and `tokenizer.model` of a folder.
With the same weights and the same seed it writes the text that `foundry generate` writes.
只有这一个文件，不导入 foundry，也不导入别的教程。它读取一个文件夹里的 `model.pt` 和 `tokenizer.model`；
权重与种子相同时，它写出的文本与 `foundry generate` 相同。
"""

import argparse
import codecs
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from torch import nn

# 1. 模型 / The model ---------------------------------------------------------------------------------------------
# 参数名与 foundry/models/transformer.py 相同，所以两边的权重可以互相加载。
# The parameters have the names of foundry/models/transformer.py, so that each side loads the weights of the other.


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, cos, sin):
    """位置编码 RoPE（arXiv:2104.09864）：把 (i, i + D/2) 这对数按位置转动。 / It turns pairs by their position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c["n_heads"], c["n_kv_heads"], c["dim"] // c["n_heads"]
        self.wq = nn.Linear(c["dim"], self.heads * self.head_dim, bias=False)
        self.wk = nn.Linear(c["dim"], self.kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(c["dim"], self.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.heads * self.head_dim, c["dim"], bias=False)

    def forward(self, x, cos, sin, cache, start):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.wk(x).view(B, T, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.wv(x).view(B, T, self.kv_heads, -1).transpose(1, 2)
        if cache is not None:
            # 缓存 / The cache: 旧 token 的 k 和 v 不再改变（因果注意力只看过去），所以算一次，存下来。
            # Keys and values of old tokens never change, since no token sees a later one: they are computed once.
            # 分组查询注意力（GQA）让缓存只有 kv_heads 份，而不是 heads 份。 GQA keeps kv_heads of them, not heads.
            cache[0][:, :, start : start + T], cache[1][:, :, start : start + T] = k, v
            k, v = cache[0][:, :, : start + T], cache[1][:, :, : start + T]
        S = k.shape[2]
        # 位置 start + t 的查询可以看 0 … start + t。 The query at position start + t sees the positions up to its own.
        mask = torch.arange(S)[None, :] <= start + torch.arange(T)[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
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

    def forward(self, x, *args):
        x = x + self.attention(self.attention_norm(x), *args)
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

    def new_cache(self):
        """每层一对 (k, v)，内存一次分配好。 / A pair (k, v) per layer; the memory is allocated once."""
        c = self.config
        shape = (1, c["n_kv_heads"], c["max_seq_len"], c["dim"] // c["n_heads"])
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]

    def forward(self, tokens, cache=None, start=0):
        """(1, T) 个 token，从位置 start 开始 → 最后一个位置的 logits (V,) / logits of the last position."""
        end = start + tokens.shape[1]
        x = self.tok_embeddings(tokens)
        for i, layer in enumerate(self.layers):
            x = layer(x, self.cos[start:end], self.sin[start:end], None if cache is None else cache[i], start)
        # 只有最后一个位置要变成词表大小的 logits。 Only the last position needs logits of the vocabulary's size.
        x = self.norm(x)[0, -1]
        return F.linear(x, self.tok_embeddings.weight if self.output is None else self.output.weight)


def load(folder):
    """(模型, 分词器)。结构由文件里的 config 决定，从不用默认值：否则权重会装进另一个模型。
    (model, tokenizer). The file's config decides the architecture, never a default: the weights belong to it only."""
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


# 2. 采样 / Sampling -----------------------------------------------------------------------------------------------


def choose(logits, seen, barred, generator, temperature, top_k, top_p, min_p, repetition_penalty):
    """下一个 token。每一步都只留下候选的一部分，顺序与 foundry/inference/sampling.py 相同。
    The next token. Each filter keeps some of the candidates, in the order of foundry/inference/sampling.py."""
    logits = logits.clone()
    if repetition_penalty != 1:  # arXiv:1909.05858：已经出现过的 token 变得不那么可能 / seen tokens get less likely
        old = torch.tensor(sorted(set(seen)))
        logits[old] = torch.where(logits[old] > 0, logits[old] / repetition_penalty, logits[old] * repetition_penalty)
    logits[barred] = float("-inf")
    if temperature == 0:  # 贪心 / greedy
        return int(logits.argmax())
    # 温度低于 1：差距变大，更保守；高于 1：更冒险。 Below 1 the differences grow, above 1 they shrink.
    scores = (logits - logits.max()) / temperature
    keep = torch.ones(len(scores), dtype=torch.bool)
    if 0 < top_k < len(scores):  # 只留最可能的 k 个 / only the k most likely ones
        keep &= scores >= scores.topk(top_k).values[-1]
    weights = scores.exp().where(keep, 0.0).double()
    if top_p < 1:  # arXiv:1904.09751：概率之和达到 p 的最小集合 / the smallest set whose probabilities reach p
        order = weights.argsort(descending=True, stable=True)
        reached = weights[order].cumsum(0)
        n = int(torch.searchsorted(reached, top_p * reached[-1])) + 1
        weights[order[n:]] = 0.0
    if min_p:  # arXiv:2407.01082：至少是最大概率的 min_p 倍 / at least this share of the largest probability
        weights[weights < min_p * weights.max()] = 0.0
    # 逆变换：一个 [0, 1) 里的均匀数落在累积概率的哪一格，就选哪个 token；所以一个 token 只用一个随机数。
    # Inverse transform: the token in whose part of the cumulative sum one uniform number falls.
    cumulative = weights.cumsum(0)
    value = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    return int(torch.searchsorted(cumulative, value, right=True))


@torch.inference_mode()
def generate(model, tokenizer, prompt, max_new_tokens=120, seed=0, use_cache=True, **how):
    """逐个产生新 token，遇到结束符就停。 / Yields new tokens one by one, up to the end symbol."""
    context = model.config["max_seq_len"]
    ids = [tokenizer.bos_id(), *tokenizer.encode(prompt)]
    if len(ids) >= context:
        sys.exit(f"the prompt has {len(ids)} tokens and the model's context is {context}: shorten the prompt")
    # 控制符从未在文本里学过，不能写出来；结束符例外。 Control symbols were never learnt in text, except the end.
    barred = [i for i in range(tokenizer.vocab_size()) if tokenizer.is_control(i) or tokenizer.is_unknown(i)]
    barred.remove(tokenizer.eos_id())
    generator = torch.Generator().manual_seed(seed)
    cache, start, seen = (model.new_cache() if use_cache else None), 0, list(ids)
    for _ in range(max_new_tokens):
        if len(ids) > context:
            # 上下文满了：丢掉旧的一半，新的一半从位置 0 重新读（位置变了，缓存也就作废了）。
            # A full context: the older half is dropped, the newer one is read again, since its positions have changed.
            ids, start = ids[-(context // 2) :], 0
        # 有缓存：只读新 token，一步的代价与长度几乎无关；没有缓存：每一步都重读全部。
        # With the cache only the new tokens are read; without it every step reads everything again.
        logits = model(torch.tensor([ids[start:]]), cache, start)
        start = len(ids) if use_cache else 0
        token = choose(logits, seen, barred, generator, **how)
        if token == tokenizer.eos_id():
            return
        ids.append(token)
        seen.append(token)
        yield token


# 3. 流式输出 / Streaming ------------------------------------------------------------------------------------------

# 一个无效字节一个 U+FFFD，与 SentencePiece 相同。 One U+FFFD for each invalid byte, as SentencePiece does it.
codecs.register_error("each byte", lambda e: ("\ufffd" * (e.end - e.start), e.end))


class Stream:
    """罕见的字由多个字节 token 拼成，只有拼完才能打印；增量解码器把没拼完的字节留住。
    A rare character is spelt in several byte tokens; the incremental decoder holds them back until it is complete."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoder = tokenizer, codecs.getincrementaldecoder("utf-8")("each byte")

    def add(self, token):
        piece = self.tokenizer.id_to_piece(token)
        if self.tokenizer.is_byte(token):
            return self.decoder.decode(bytes([int(piece[3:5], 16)]))  # <0xE4>
        text = "" if self.tokenizer.is_control(token) else piece.replace("\u2581", " ")
        return self.decoder.decode(text.encode(), final=True)


def main():
    parser = argparse.ArgumentParser(description="continue a text with the model of tutorials/train.py")
    parser.add_argument("prompt", nargs="?", default="The ", help="the text to continue (default: %(default)r)")
    parser.add_argument("--model", default=str(Path(__file__).parent / "out"), help="folder (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: %(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="read the whole text again for each token")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=0.95, help="1 is off (default: %(default)s)")
    parser.add_argument("--min-p", type=float, default=0.0, help="0 is off (default: %(default)s)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is off (default: %(default)s)")
    options = vars(parser.parse_args())
    if not (options["temperature"] >= 0 and 0 < options["top_p"] <= 1 and options["repetition_penalty"] > 0):
        parser.error("--temperature must be at least 0, --top-p in (0, 1], --repetition-penalty positive")
    model, tokenizer = load(options.pop("model"))
    prompt, use_cache = options.pop("prompt"), not options.pop("no_cache")
    print(prompt, end="", flush=True)
    stream, n, began = Stream(tokenizer), 0, time.perf_counter()
    for token in generate(model, tokenizer, prompt, use_cache=use_cache, **options):
        print(stream.add(token), end="", flush=True)
        n += 1
    print()
    seconds = time.perf_counter() - began
    how = "with the cache" if use_cache else "without the cache"
    print(f"{n} tokens in {seconds:.2f} s, {n / seconds:.0f} tokens/s, {how}", file=sys.stderr)


if __name__ == "__main__":
    main()
