"""Tutorial 5: several processes that train as one. / 教程五：几个进程像一个进程那样训练。

    python tutorials/distributed.py               # 先一个进程，再两个，比较损失 / one process, then two
    python tutorials/distributed.py --nproc 3     # 批次不必能整除 / the batch need not be divisible

One file that imports neither foundry nor another tutorial. It reads the configuration and the tokens of the folder that
train.py wrote, and trains its first steps from scratch in float32, with data parallelism (DDP) written out over gloo.
只有这一个文件，不导入 foundry，也不导入别的教程。它读取 train.py 写出的文件夹里的配置和 token，用 float32 从头训练
最初的几步；数据并行（DDP）在这里是手写的，通信用 gloo。

数据并行：每个进程都有完整的模型，只读批次的一部分；梯度相加以后，各进程做同样的更新，所以权重一直相同。
Data parallelism: each process has the whole model and reads its part of the batch. Gradients are summed over the
processes, then each makes the same update, so that the weights stay the same without ever being sent again.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

Linear = partial(nn.Linear, bias=False)


# 1. 数据并行 / Data parallelism -------------------------------------------------------------------------------------
class DataParallel:
    """在反向传播进行的同时，把算好的梯度一桶一桶地在进程间相加。
    Sums gradients over the processes, one bucket after another, while the backward pass still computes others.

    一个一个地发太慢（每次通信都有延迟），等全部算完再发又浪费时间：所以分桶（Li 等，2020，arXiv:2006.15704）。
    One message per tensor is slow, since each has a latency, and one at the end leaves the network idle: hence buckets.
    """

    def __init__(self, model, bucket_bytes=1 << 20):
        for p in model.parameters():
            dist.broadcast(p.data, src=0)  # 各进程从同样的权重开始 / all begin with the same weights
        # 反向传播从最后一层开始，所以桶按参数的倒序装。 The backward pass begins at the last layer, and so do buckets.
        self.buckets, size = [[]], 0
        for p in reversed(list(model.parameters())):
            if size >= bucket_bytes:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(p)
            size += p.numel() * p.element_size()
        self.bucket_of = {p: i for i, bucket in enumerate(self.buckets) for p in bucket}
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(self.ready)
        self.missing, self.sent = [len(bucket) for bucket in self.buckets], []

    def ready(self, p):
        """autograd 每算好一个参数的梯度就调用它。 autograd calls it when the gradient of a parameter is complete."""
        self.missing[self.bucket_of[p]] -= 1
        # 各进程必须按同样的次序通信，否则一个桶会与另一个桶相加：所以只按桶的次序发。
        # All processes have to communicate in one order, or a bucket would be added to another: by its number only.
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            flat = torch.cat([p.grad.flatten() for p in self.buckets[len(self.sent)]])
            self.sent.append((flat, dist.all_reduce(flat, async_op=True)))  # 立刻返回 / it returns at once

    def finish(self):
        """等所有的和，放回各个梯度。 Waits for all sums and puts them back."""
        for bucket, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad.copy_(part.view_as(p))
        self.missing, self.sent = [len(bucket) for bucket in self.buckets], []


def share(x, rank, nproc):
    """这个进程的那几行。 The rows of this process."""
    return x[rank * len(x) // nproc : (rank + 1) * len(x) // nproc]


def train(rank, nproc, folder, steps, work):
    """一个进程的训练；0 号进程写下损失。 The training of one process; the first one writes down the losses."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // nproc))  # 否则进程互相抢核 / or they compete for the cores
    torch.set_flush_denormal(True)
    # 进程通过一个文件找到彼此，所以不需要端口。 They find each other through a file, so that no port is needed.
    address = f"file://{work}/rendezvous-{nproc}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=nproc)
    saved = torch.load(folder / "model.pt", weights_only=True)
    config, r = saved["config"], saved["settings"]["recipe"]
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    torch.manual_seed(r["seed"] + rank)  # 故意不同：广播使它们相同 / different on purpose: the broadcast corrects it
    model, state, losses = Model(config), {}, []
    parallel = DataParallel(model)
    began = time.perf_counter()
    for step in range(steps):
        # 整个批次与一个进程时相同，与进程数无关。 The whole batch is the same for every number of processes.
        x, y = (share(t, rank, nproc) for t in batch(tokens, step, r["rows"], config["max_seq_len"], r["seed"]))
        count = torch.tensor(y.numel())
        dist.all_reduce(count)
        # 和除以所有进程的 token 总数。若各取平均再平均，token 少的进程会占便宜：结果就变了。
        # A sum, divided by the tokens of all: in a mean of means the tokens of a small part would count for more.
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / count
        loss.backward()
        parallel.finish()
        # 梯度已经相同，所以范数和更新也相同，不用再通信。 Gradients are equal, and so are their norm and the update.
        nn.utils.clip_grad_norm_(model.parameters(), r["grad_clip"])
        update(model, state, step, r)
        total = loss.detach()
        dist.all_reduce(total)
        losses.append(total.item())
    seconds = (time.perf_counter() - began) / steps
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    others = [torch.empty_like(flat) for _ in range(nproc)]
    dist.all_gather(others, flat)
    equal = all(torch.equal(flat, other) for other in others)
    if rank == 0:
        result = {"losses": losses, "seconds": seconds, "equal": equal, "bytes": 4 * flat.numel()}
        (work / f"{nproc}.json").write_text(json.dumps(result | {"buckets": len(parallel.buckets)}))
    dist.destroy_process_group()


def run(nproc, folder, steps):
    """训练 `steps` 步，返回 0 号进程写下的结果。 Trains, and returns what the first process wrote down."""
    with tempfile.TemporaryDirectory() as work:
        mp.spawn(train, args=(nproc, folder, steps, Path(work)), nprocs=nproc)
        return json.loads((Path(work) / f"{nproc}.json").read_text())


# 2. 批次、模型、优化器，与 train.py 相同 / Batches, model and optimizer, as in train.py -------------------------------
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
        outer, inner = c["dim"], c["ffn_dim"]
        shapes = {"w_gate": (outer, inner), "w_up": (outer, inner), "w_down": (inner, outer)}
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
def update(model, state, step, r):
    """Muon（Jordan 等，2024）更新各层的矩阵：每个方向都学，而不只是最强的几个；其余用 AdamW（arXiv:1711.05101）。
    Muon for matrices of the layers: every direction is learnt, not only the strongest. AdamW for the rest."""
    # WSD（arXiv:2404.06395）：学习率先预热，再稳定，最后线性降到 0。 Warm-up, a stable phase, linear decay to 0.
    left = (r["steps"] - step) / max(1, round(r["decay_fraction"] * r["steps"]))
    factor = min((step + 1) / (r["warmup_steps"] + 1), 1.0, left)
    for name, p, g in ((name, p, p.grad) for name, p in model.named_parameters()):
        if name.startswith("layers.") and p.ndim == 2:
            momentum = state.setdefault(name, torch.zeros_like(p)).lerp_(g, 0.05)
            direction = orthogonal(g.lerp(momentum, 0.95))  # Nesterov
            p.mul_(1 - factor * r["matrix_lr"] * r["weight_decay"])
            p.sub_(direction, alpha=factor * r["matrix_lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
        else:
            mean, square = state.setdefault(name, torch.zeros(2, *p.shape))
            mean.lerp_(g, 0.1)
            square.lerp_(g * g, 0.05)
            size = (square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8  # 平均值从 0 开始，要修正 / begun at 0: corrected
            p.sub_(mean / (1 - 0.9 ** (step + 1)) / size, alpha=factor * r["lr"])
        p.grad = None


def main():
    parser = argparse.ArgumentParser(description="compare the training of several processes with that of one")
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).resolve().parent / "out", help="folder of train.py"
    )
    parser.add_argument("--nproc", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="default: %(default)s")
    a = parser.parse_args()
    for name in ("model.pt", "tokens.npy"):
        if not (a.model / name).is_file():
            sys.exit(f"{a.model / name} does not exist: run `python tutorials/train.py --out {a.model}` first")
    rows = torch.load(a.model / "model.pt", weights_only=True)["settings"]["recipe"]["rows"]
    if not 1 <= a.nproc <= rows:
        parser.error(f"--nproc must be from 1 to {rows}, the rows of a batch: each process needs one")
    one, many = run(1, a.model, a.steps), run(a.nproc, a.model, a.steps)
    print(f"step   1 process   {a.nproc} processes   relative difference")
    worst = 0.0
    for step, (x, y) in enumerate(zip(one["losses"], many["losses"], strict=True), 1):
        worst = max(worst, abs(x / y - 1))
        print(f"{step:4}   {x:9.6f}   {y:11.6f}   {abs(x / y - 1):.0e}")
    print(f"weights of all processes: {'the same bits' if many['equal'] else 'DIFFERENT'}")
    print(f"each step sums {many['bytes']:,} bytes of gradients in {many['buckets']} buckets")
    print(f"seconds per step: {one['seconds']:.3f} with 1 process, {many['seconds']:.3f} with {a.nproc}")
    if worst > 1e-4 or not many["equal"]:
        sys.exit("the processes did not train as one: this is a bug")


if __name__ == "__main__":
    main()
