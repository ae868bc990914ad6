"""Tutorial 3: from a model that continues text to one that answers. / 教程三：从续写文本的模型到会回答的模型。

    python tutorials/chat.py            # 微调并打印前后对比 / fine-tune, and print a table of before and after
    python tutorials/chat.py --talk     # 与结果对话 / talk to the result

Supervised fine-tuning (SFT) in one file that imports neither foundry nor another tutorial. It makes 2,000 conversations
from words of the tokenizer, shows in colour what is learnt of them, trains the model of train.py on them, and asks
200 questions that it has never seen, before and after. Each answer is checked by a rule, so the table needs no judge.
只用一个文件完成监督微调（SFT）：用分词器里的词造出 2,000 段对话，用颜色显示其中哪些部分要学，训练 train.py 的模型，
再在训练前后各问 200 个没见过的问题。每个答案都由规则检查，所以这张表不需要裁判。
"""

import argparse
import random
import shutil
import sys
from pathlib import Path

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
        dim, self.heads, self.kv_heads = c["dim"], c["n_heads"], c["n_kv_heads"]
        inner = dim // self.heads * self.kv_heads
        self.wq, self.wk = nn.Linear(dim, dim, bias=False), nn.Linear(dim, inner, bias=False)
        self.wv, self.wo = nn.Linear(dim, inner, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x, cos, sin):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.wk(x).view(B, T, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.wv(x).view(B, T, self.kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.w_gate, self.w_up = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.w_down = nn.Linear(inner, dim, bias=False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(c["dim"], c["norm_eps"]), Attention(c)
        self.ffn_norm, self.ffn = RMSNorm(c["dim"], c["norm_eps"]), SwiGLU(c["dim"], c["ffn_dim"])

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

    def forward(self, tokens, where):
        """(B, T) 个 token，N 个位置 bool (B, T) → 这些位置的 logits (N, V) / logits of the N places that are true.

        词表很大，所以只在需要的位置计算 logits。 The vocabulary is large: other places need no logits."""
        x, T = self.tok_embeddings(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return F.linear(self.norm(x[where]), self.tok_embeddings.weight if self.output is None else self.output.weight)


def load(folder):
    for name in ("model.pt", "tokenizer.model"):
        if not (folder / name).is_file():
            sys.exit(f"{folder / name} does not exist: run tutorials/train.py, and before --talk tutorials/chat.py")
    saved = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    if unknown := [k for k in ("dropout", "qk_norm", "logit_softcap", "sliding_window") if saved["config"].get(k)]:
        sys.exit(f"{folder / 'model.pt'} uses {', '.join(unknown)}, which this tutorial does not compute: use foundry")
    model = Model(saved["config"])
    model.load_state_dict({name: value.float() for name, value in saved["model"].items()})
    return model, SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


# 2. 对话 → token 与掩码 / A conversation → tokens and mask ------------------------------------------------------------
def encode(tokenizer, turns, answer=False):
    """(ids, 掩码 mask)，模板 / of the template <s>, then <|im_start|>role\\ncontent<|im_end|>\\n for each turn.

    掩码只由结构决定：只学助手的内容和它的结束符。学会结束符，模型才知道何时停下；不学用户的话，因为提问不是它的任务。
    用户打出的 "<|im_end|>" 只是普通字符：控制符的编号只能由这里写入，文本永远编码不出它。
    The mask follows from the structure: contents and end symbols of the assistant's turns are learnt. Without the end
    symbol a model never learns to stop; the user's words are not learnt, because asking is not its task. A user who
    types "<|im_end|>" writes plain characters: no text ever encodes to the ids of the control symbols."""
    begin, end = tokenizer.piece_to_id("<|im_start|>"), tokenizer.piece_to_id("<|im_end|>")
    ids, mask = [tokenizer.bos_id()], [False]
    for role, content in turns:
        header, text = tokenizer.encode(f"{role}\n"), tokenizer.encode(f"{role}\n{content}")
        ids += [begin, *text, end, *tokenizer.encode("\n")]
        mask += [False] * (1 + len(header)) + [role == "assistant"] * (len(text) - len(header) + 1)
        mask += [False] * (len(ids) - len(mask))
    if answer:  # 模型从这里接着写 / the model continues here
        ids += [begin, *tokenizer.encode("assistant\n")]
    return ids, mask


def coloured(tokenizer, ids, mask, colour):
    """要学的部分是绿色；没有颜色的终端里用 ⟦…⟧。 / What is learnt in green, or between ⟦ and ⟧ without colours."""
    on, off = ("\033[1;32m", "\033[0m") if colour else ("⟦", "⟧")
    pieces = [tokenizer.id_to_piece(i).replace("\u2581", " ").replace("<0x0A>", "⏎\n") for i in ids]
    edges = zip(pieces, mask, [False, *mask], [*mask[1:], False], strict=False)
    return "".join(on * (here > before) + piece + off * (here > after) for piece, here, before, after in edges)


def make_conversations(tokenizer, n, seed):
    """n 段对话 [(任务 task, 轮次 turns)]：词来自分词器，答案由规则得出。 / Words of the tokenizer, answers by rule."""
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size())]
    # 最常用的 100 个词：词表按频率排列。 The 100 most frequent words: pieces are in the order of their frequency.
    words = [p[1:] for p in pieces if p[0] == "\u2581" and len(p) > 3 and p[1:].isalpha() and p.islower()][:100]
    words = words or [p for p in pieces if len(p) == 2 and p.isalpha()][:100]  # 中文没有空格 / Chinese has no spaces
    if len(words) < 10:
        sys.exit(f"the tokenizer has only {len(words)} whole words: train it on more text or with a larger vocabulary")
    rng = random.Random(seed)
    tasks = {
        "repeat": (("Say: {}", "Repeat these words: {}"), lambda w: " ".join(w)),
        "first": (("What is the first word of: {}", "First word: {}"), lambda w: w[0]),
        "last": (("What is the last word of: {}", "Last word: {}"), lambda w: w[-1]),
        "reverse": (("In reverse order: {}", "Say backwards: {}"), lambda w: " ".join(reversed(w))),
        "count": (("How many words: {}", "Count the words: {}"), lambda w: str(len(w))),
    }
    greetings = ("Hello", "Hello!", "Hi", "Who are you?", "What can you do?")
    hello = "Hello! I am a small language model. Give me some words to repeat, to reverse or to count."

    def question():
        task = rng.choice(list(tasks))
        wordings, rule = tasks[task]
        w = rng.sample(words, rng.randint(2, 5))
        return task, [("user", rng.choice(wordings).format(" ".join(w))), ("assistant", rule(w))]

    made = []
    while len(made) < n:
        kind = rng.random()
        if kind < 0.05:
            made.append(("hello", [("user", rng.choice(greetings)), ("assistant", hello)]))
        elif kind < 0.2:  # 两轮：模型要看最后一个问题 / two turns: the last question counts
            (_, a), (task, b) = question(), question()
            made.append((task, a + b))
        else:
            made.append(question())
    return made


# 3. 训练 / Training ------------------------------------------------------------------------------------------------
def batch_of(rows, step, size, seed):
    """第 step 步的批次只取决于 (数据, 种子, 步数)，所以可以重复。 / A function of (data, seed, step) only.

    右边补齐：因果注意力从不向右看，所以不需要注意力掩码。目标 -100 不计入损失。
    Padding is on the right, where causal attention never looks. Targets of -100 do not count in the loss."""
    epoch, at = divmod(step, len(rows) // size)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1000 * seed + epoch))
    chosen = [rows[int(i)] for i in order[at * size : (at + 1) * size]]
    width = max(len(ids) for ids, _ in chosen) - 1
    tokens, targets = torch.zeros(size, width, dtype=torch.long), torch.full((size, width), -100)
    for row, (ids, mask) in enumerate(chosen):
        tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, : len(ids) - 1] = torch.tensor(ids[1:]).where(torch.tensor(mask[1:]), -100)
    return tokens, targets


def train(model, rows, steps, batch_size, lr, seed):
    """每步的损失 / the loss of each step. 优化器是新的：预训练的动量属于另一个学习率。 The optimizer starts afresh."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        # 预热 10 步，然后线性降到 0。 A warm-up of 10 steps, then linearly to 0.
        warmup = min(10, steps // 2)
        factor = (step + 1) / (warmup + 1) if step < warmup else (steps - step) / (steps - warmup)
        optimizer.param_groups[0]["lr"] = lr * factor
        tokens, targets = batch_of(rows, step, batch_size, seed)
        # 除以要学的 token 数，而不是行数：长答案和短答案里的每个 token 同样重要。
        # Divided by the tokens that are learnt, not by rows: a token of a long answer weighs as one of a short answer.
        learnt = targets != -100
        loss = F.cross_entropy(model(tokens, learnt), targets[learnt])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


# 4. 提问 / Asking --------------------------------------------------------------------------------------------------
@torch.inference_mode()
def answers(model, tokenizer, prompts, most=32):
    """[(回答 answer, 是否自己停下 ended)]，贪心，所有提问一起算。 / Greedy, all prompts at the same time."""
    stops = {tokenizer.piece_to_id("<|im_end|>"), tokenizer.eos_id()}
    rows = [encode(tokenizer, turns, answer=True)[0] for turns in prompts]
    starts, ended = [len(ids) for ids in rows], [False] * len(rows)
    for _ in range(min(most, model.config["max_seq_len"] - max(starts))):
        live = [i for i in range(len(rows)) if not ended[i]]
        if not live:
            break
        x = nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in live], batch_first=True)
        last = torch.arange(x.shape[1]) == torch.tensor([[len(rows[i]) - 1] for i in live])
        for i, token in zip(live, model(x, last).argmax(-1).tolist(), strict=True):
            ended[i] = token in stops
            if not ended[i]:
                rows[i].append(token)
    return [(tokenizer.decode(ids[s:]), end) for ids, s, end in zip(rows, starts, ended, strict=True)]


def ask(model, tokenizer, questions):
    """{任务 task: (答对的比例 share right, 自己停下的比例 share ended)}"""
    table = {}
    for task in sorted({task for task, _ in questions}):
        turns = [turns for name, turns in questions if name == task]
        found, ended = zip(*answers(model, tokenizer, [t[:-1] for t in turns]), strict=True)
        right = [answer == t[-1][1] for answer, t in zip(found, turns, strict=True)]
        table[task] = sum(right) / len(right), sum(ended) / len(ended)
    return table


def talk(model, tokenizer):
    turns, room = [], model.config["max_seq_len"] - 40
    print("> ", end="", flush=True)
    for line in sys.stdin:
        turns.append(("user", line.strip()))
        while len(encode(tokenizer, turns, answer=True)[0]) > room and len(turns) > 1:
            turns = turns[2:]  # 上下文满了：忘掉最旧的一问一答 / a full context: the oldest exchange is forgotten
        turns.append(("assistant", answers(model, tokenizer, [turns])[0][0]))
        print(turns[-1][1], end="\n> ", flush=True)


def main():
    parser = argparse.ArgumentParser(description="fine-tune the model of tutorials/train.py to answer")
    parser.add_argument("--model", default=str(Path(__file__).parent / "out"), help="folder (default: %(default)s)")
    parser.add_argument("--out", help="folder of the result (default: chat in the folder of the model)")
    for name, default in (("examples", 2000), ("steps", 400), ("batch-size", 16), ("lr", 1e-3), ("seed", 1)):
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--talk", action="store_true", help="talk to the result instead of training")
    args = parser.parse_args()
    out = Path(args.out or Path(args.model) / "chat")
    if args.talk:
        return talk(*load(out))
    model, tokenizer = load(Path(args.model))
    made = make_conversations(tokenizer, args.examples, args.seed)
    known = {str(turns[-2]) for _, turns in made}
    unseen = [q for q in make_conversations(tokenizer, 400, args.seed + 1) if str(q[1][-2]) not in known][:200]
    rows = [encode(tokenizer, turns) for _, turns in made]
    longest = max(rows, key=lambda row: len(row[0]))
    if args.batch_size > len(rows) or len(longest[0]) > model.config["max_seq_len"]:
        sys.exit("--examples must be at least --batch-size, and a conversation must fit the context of the model")
    print(f"{len(rows)} conversations; this is learnt of the longest one:\n")
    print(coloured(tokenizer, *longest, colour=sys.stdout.isatty()))
    before = ask(model, tokenizer, unseen)
    for step, loss in enumerate(train(model, rows, args.steps, args.batch_size, args.lr, args.seed), 1):
        if step % 50 == 0 or step == 1:
            print(f"step {step}/{args.steps}: loss {loss:.3f} nats per learnt token")
    after = ask(model, tokenizer, unseen)
    print(f"\n{len(unseen)} unseen questions  right before → after   ended before → after")
    for task, (right, ended) in before.items():
        print(f"{task:20} {right:12.0%} → {after[task][0]:5.0%} {ended:14.0%} → {after[task][1]:5.0%}")
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"config": model.config, "model": model.state_dict(), "step": args.steps}, out / "model.pt")
    shutil.copy(Path(args.model) / "tokenizer.model", out / "tokenizer.model")
    print(f"\nwrote {out}: talk to it with python tutorials/chat.py --talk --out {out}")


if __name__ == "__main__":
    main()
