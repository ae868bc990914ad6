"""What training will do, derived before it starts; what a step read, listed afterwards."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from foundry.config import ConfigError, ModelConfig, Runtime, TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.models.accounting import train_memory_bytes
from foundry.training.plan import check_plan, checkpoint_space, make_plan
from foundry.training.probe import gpu_seconds
from foundry.utils.log import get_logger

MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=6, tokens_per_step=256, warmup_steps=1)


@pytest.mark.parametrize("packing", ["cut", "best_fit", "document"])
def test_the_documents_of_a_step_are_those_its_batch_holds(shards, packing):
    loader = DataLoader(shards, 8, 32, 3, packing=packing)
    for step in (0, 5, loader.rows_per_epoch // 8):  # the last one crosses into the next epoch
        tokens = loader.batch(step)[0].numpy()
        rows = [[] for _ in range(8)]
        for p in loader.parts(step):
            rows[p.row].append(p.tokens[: len(p.tokens)])
        for row, pieces in zip(tokens, rows, strict=True):
            seen = np.concatenate(pieces)
            assert np.array_equal(seen, row[: len(seen)]) and (packing != "cut" or len(seen) == 32)
    ids = {p.doc_id for p in loader.parts(0)}
    assert all(len(i) == 16 for i in ids)
    assert next(iter(ids)) in loader.describe(0, most=100)


def test_a_part_says_where_in_its_document_it_lies(shards):
    loader = DataLoader(shards, 8, 32, 3)
    whole = {}
    for shard in range(len(loader.shards.tokens)):
        for doc_id, at, begin, end in loader.shards.documents_at(shard, 0, len(loader.shards.tokens[shard])):
            whole[doc_id] = loader.shards.tokens[shard][at + begin : at + end]
    for p in loader.parts(4):
        assert np.array_equal(whole[p.doc_id][p.begin : p.end], p.tokens)


def test_the_memory_estimate_is_near_what_a_step_takes():
    """Against the tensors that autograd keeps for a backward pass, counted by hooks."""
    import torch

    from foundry.models import MiniLLM

    cfg = ModelConfig(vocab_size=1000, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=256, max_seq_len=128)
    model, kept = MiniLLM(cfg), {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = torch.randint(0, 1000, (8, 128))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.summed_loss(x, x, chunk=256)
    seen = sum(n for k, n in kept.items() if k not in weights)
    fixed = 12 * sum(p.numel() for p in model.parameters())
    estimate = train_memory_bytes(cfg, 8, False, chunk=256, muon=False)
    assert 0.6 < (fixed + seen) / estimate < 1.4
    assert train_memory_bytes(cfg, 8, False, True, 256, muon=False) < estimate


def test_the_memory_estimate_adds_up_by_hand():
    """12 tokens, 3 layers of 312 weights with width 8, 8 + 4 of queries and keys, 4 heads and an inner width of 5."""
    from foundry.models import MiniLLM

    cfg = ModelConfig(
        vocab_size=10, dim=8, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=5, max_seq_len=6, qk_norm=False
    )
    weights = sum(p.numel() for p in MiniLLM(cfg).parameters())
    adamw, muon = 12 * weights, 12 * weights - 4 * 3 * 312
    update = 4 * weights + 18 * 3 * 8 * 16  # query and output matrices are as large, and more than the inner ones
    layer = 12 * (24 * 8 + 8 + 12 * 12 + 4 * 4 + 16 * 5) + 4 * 312
    last, head = 12 * (16 * 8 + 16), 4 * 80 + 12 * 7 * 10
    back = 12 * 24 * 8 + 8 * 80
    # The inputs of three layers, or of one and the gradients of two; and one layer with its slopes.
    again = max(3 * 12 * 4 * 8, 12 * 4 * 8 + 4 * 2 * 312) + layer + 12 * (6 * 8 + 2 * 4 * 5) + 4 * 80
    half = 12 * (20 * 8 + 8 + 6 * 12 + 4 * 4 + 8 * 5) + 2 * 312
    compiled = 12 * (12 * 8 + 8 + 6 * 12 + 4 * 4 + 6 * 5) + 2 * 312
    normed = half + 12 * (6 * 12 + 4 * 6)
    assert 3 * layer + last + head > update and last + head < back < last + head + 2 * 80
    for options, expected in (
        ({}, muon + 3 * layer + back),
        ({"muon": False}, adamw + 3 * layer + back),
        ({"accumulates": True}, muon + 4 * weights + 3 * layer + back),
        ({"half": True}, muon + 3 * half + last + head + 2 * 80),
        ({"half": True, "device": "cpu"}, muon + 3 * (half + 12 * 4 * 6 * 2) + last + head + 2 * 80),  # its scores
        ({"half": True, "compiled": True}, muon + 3 * compiled + 12 * (10 * 8 + 16) + 6 * 80 + 8 * 7 * 10),
        ({"recompute": True}, muon + update),  # the optimizer needs more than the passes
        ({"recompute": True, "muon": False}, adamw + again),
        ({"recompute": True, "accumulates": True}, muon + 4 * weights + again),
        ({"divided": 4}, muon // 4 + 3 * layer + back),
    ):
        assert train_memory_bytes(cfg, 2, **{"half": False, "chunk": 7, **options}) == expected, options
    with_norms = cfg.model_copy(update={"qk_norm": True})
    more = 3 * (2 * 2) * 12 + 3 * (normed - half)  # the weights of the norms with their moments, and what they keep
    assert train_memory_bytes(with_norms, 2, True, chunk=7) == muon + 3 * half + last + head + 2 * 80 + more
    # The optimizer needs more than the passes of one short row.
    assert train_memory_bytes(cfg.model_copy(update={"max_seq_len": 1}), 1, False) == muon + update
    wide = cfg.model_copy(update={"vocab_size": 1000, "max_seq_len": 2000})
    more = train_memory_bytes(wide, 1, False) - train_memory_bytes(wide, 1, False, chunk=1000)
    assert more == 24 * 12 * 1000  # 1,024 logits at a time, unless the caller says otherwise


def test_an_untied_head_is_counted_once_in_the_operations():
    from foundry.models.accounting import train_flops_per_token

    tied = ModelConfig(
        vocab_size=10, dim=8, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=5, max_seq_len=6, qk_norm=False
    )
    weights = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 5) + 10 * 8
    for cfg in (tied, tied.model_copy(update={"tie_embeddings": not tied.tie_embeddings})):
        assert train_flops_per_token(cfg) == 6 * weights + 6 * 3 * 8 * 6


def test_a_plan_in_words():
    """4,000 tokens of 1,600, and the numbers of a model of 50 x 4 embedding weights, counted by hand."""
    cfg = ModelConfig(
        vocab_size=50,
        dim=4,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        ffn_dim=3,
        max_seq_len=8,
        qk_norm=False,
        tie_embeddings=True,
    )
    plan = make_plan(cfg, TrainConfig(steps=20, tokens_per_step=200, warmup_steps=1), 1600)
    inner = 4 * 4 * 4 + 3 * 4 * 3  # attention, feed-forward
    params = 50 * 4 + inner + 3 * 4  # and three norms
    flops = 6 * (50 * 4 + inner) + 6 * 4 * 8
    assert plan.to_dict() == {
        "params": params,
        "non_embedding_params": params - 200,
        "steps": 20,
        "tokens_per_step": 200,
        "tokens": 4000,
        "tokens_per_epoch": 1600,
        "epochs": 2.5,
        "flops_per_token": flops,
        "flops": 4000 * flops,
        "first_loss": 3.912,
        "checkpoint_bytes": 12 * params,
    }
    assert make_plan(cfg, TrainConfig(steps=20, tokens_per_step=200, warmup_steps=1), 1_300).epochs == 3.0769
    big = replace(plan, checkpoint_bytes=2500 * 2**20)
    assert big.lines() == [
        f"model: {params} parameters ({params - 200} without the embedding)",
        "data: 4,000 tokens = 20 steps x 200; 2.50 epochs of 1,600",
        f"work: {4000 * flops:.2e} floating-point operations, {flops:,} per token "
        "(6 for each weight that is multiplied, 6 x dim x context for the attention of a layer)",
        "a checkpoint takes about 2,500 MiB",
        "expected first loss: ln V = 3.912",
    ]


def test_what_an_fsdp_process_needs_is_told_to_the_byte(tmp_path, caplog):
    """Of weights, moments and gradients each of three processes has a third."""
    get_logger().propagate = True
    plan, runtime = make_plan(MODEL, TRAIN, 10_000), Runtime(parallel="fsdp")
    for processes, precision in ((1, "float32"), (3, "float32"), (3, "bfloat16")):
        needs = train_memory_bytes(
            MODEL, 8, precision != "float32", runtime.recompute, runtime.loss_chunk, divided=processes
        )
        for memory, warned in ((needs + 1, False), (needs - 1, True), (None, False)):
            caplog.clear()
            checked(plan, runtime, tmp_path, memory=memory, processes=processes, precision=precision)
            assert ("training may need" in caplog.text) == warned, (processes, precision, memory)
    checked(plan, Runtime(parallel="ddp"), tmp_path, precision="float16", processes=2)


def test_a_run_that_has_all_its_checkpoints_needs_no_room(tmp_path):
    plan = make_plan(MODEL, TRAIN, 10_000)
    folder = tmp_path / "checkpoints/step-00000006"
    folder.mkdir(parents=True)
    for size in (plan.checkpoint_bytes, plan.checkpoint_bytes + 100):
        (folder / "part").write_bytes(bytes(size))
        needed, _, there = checkpoint_space(plan, Runtime(), frozenset(), tmp_path)
        assert needed == 0 and there == tmp_path
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "removed just now")
    assert checkpoint_space(plan, Runtime(), frozenset(), tmp_path)[0] == plan.checkpoint_bytes


def checked(plan, runtime, folder, **resolved):
    known = {"precision": "float32", "compiled": False, "device": "cuda", "processes": 1, "memory": None}
    check_plan(plan, MODEL, TRAIN, runtime, 8, folder, **{**known, **resolved})


def test_memory_is_checked_on_the_device_and_in_the_precision_that_the_run_gets(shards, tmp_path, monkeypatch, caplog):
    """With `auto` for both, as with their names: float32 on this CPU, half of the activations with bfloat16."""
    from foundry.training import Trainer

    get_logger().propagate = True
    single, half = (train_memory_bytes(MODEL, 8, h) for h in (False, True))
    monkeypatch.setattr("foundry.training.trainer.device_memory", lambda device: (single + half) // 2)
    monkeypatch.setattr("foundry.utils.device.native_bfloat16", lambda device: False)
    for device, precision, warned in (("auto", "auto", True), ("cpu", "float32", True), ("cpu", "bfloat16", False)):
        caplog.clear()
        runtime = Runtime(device=device, precision=precision, micro_batch_tokens=256, threads=1)
        Trainer.from_shards(MODEL, TRAIN, shards, runtime=runtime, state=tmp_path)
        assert ("training may need" in caplog.text) == warned, (device, precision)


def test_with_fsdp_each_process_holds_its_part_and_one_process_holds_all(tmp_path, caplog):
    get_logger().propagate = True
    plan, runtime = make_plan(MODEL, TRAIN, 10_000), Runtime(parallel="fsdp")
    memory = train_memory_bytes(MODEL, 8, False) - 4 * plan.params
    checked(plan, runtime, tmp_path, memory=memory, processes=2)
    assert "training may need" not in caplog.text
    checked(plan, runtime, tmp_path, memory=memory)
    assert "training may need" in caplog.text
    checked(plan, runtime, tmp_path, precision="float16")  # one process divides nothing


def test_the_space_for_checkpoints_counts_all_that_will_be_kept_and_what_is_there(tmp_path, monkeypatch):
    """To the byte: the newest, the pinned, the one being written; on resume only what is still to come."""
    plan, runtime = (
        make_plan(MODEL, TRAIN.model_copy(update={"steps": 100}), 10_000),
        Runtime(checkpoint_interval=10, keep_checkpoints=3),
    )
    usage = shutil.disk_usage(tmp_path)

    def fits(free, pinned, folder=tmp_path):
        with monkeypatch.context() as m:
            m.setattr("shutil.disk_usage", lambda p: usage._replace(free=free))
            try:
                checked(plan, runtime, folder, pinned=frozenset(pinned))
            except ConfigError:
                return False
            return True

    one = plan.checkpoint_bytes
    for pinned, number in (((), 4), ((80,), 5), ((0, 80), 6)):
        assert fits(number * one, pinned) and not fits(number * one - 1, pinned)
    for n, step in enumerate((60, 70, 80, 90), 1):
        folder = tmp_path / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(bytes(one))
        assert fits((5 - n) * one, (80,)) and not fits((5 - n) * one - 1, (80,))
    short = make_plan(MODEL, TRAIN, 10_000)  # 6 steps: its last one is its only checkpoint
    needed, _, _ = checkpoint_space(short, runtime, frozenset(), tmp_path / "other")
    assert needed == one


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_takes_what_the_plan_says(shards, tmp_path, optimizer):
    """AdamW: weights and two moments of four bytes. Muon: one moment for the matrices, therefore less than planned."""
    from foundry.training import Trainer
    from foundry.utils.checkpoint import load_checkpoint

    train = TRAIN.model_copy(update={"optimizer": optimizer})
    trainer = Trainer.from_shards(
        MODEL, train, shards, runtime=Runtime(device="cpu", precision="float32", threads=1), state=tmp_path
    )
    trainer.fit()
    (path,) = trainer.folder.glob("checkpoints/step-00000006")
    tensors, _ = load_checkpoint(path)
    seen = sum(t.nbytes for k, t in tensors.items() if not k.startswith("rng/") and t.ndim)
    planned = trainer.plan.checkpoint_bytes
    assert seen == planned if optimizer == "adamw" else 0.6 * planned < seen < planned


def test_all_that_cannot_work_is_told_together(tmp_path, monkeypatch):
    plan = make_plan(MODEL, TRAIN, 10_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda p: usage._replace(free=1000))
    runtime = Runtime(parallel="fsdp")  # whose precision auto comes to float16 on an older GPU
    with pytest.raises(
        ConfigError, match=r"(?s)checkpoints need [0-9.]+ MiB.*are free.*fsdp needs bfloat16.*auto is float16"
    ):
        checked(plan, runtime, tmp_path / "not" / "there", precision="float16", processes=2)


def test_time_on_a_gpu_comes_from_its_data_sheet():
    plan = make_plan(ModelConfig(vocab_size=32768, dim=768, n_layers=12, n_heads=12, ffn_dim=2560), TRAIN, 10**6)
    assert gpu_seconds(plan, "H100", 2) == pytest.approx(plan.flops / (2 * 989e12 * 0.4))
    with pytest.raises(ConfigError, match="'H900' is not known; known are H200, H100"):
        gpu_seconds(plan, "H900", 1)


@pytest.mark.slow
def test_the_commands_plan_and_inspect_say_it(shards, tokenizer, tmp_path):
    from pathlib import Path

    import yaml

    from foundry.config import read_yaml

    root = Path(__file__).resolve().parents[2]
    params = read_yaml(root / "params.yaml")
    params["tokenizer"]["vocab_size"] = 400
    params["model"].update(MODEL.model_dump(exclude={"vocab_size"}))
    params["evaluate"]["task_files"] = []
    params["train"].update(
        {"steps": 30, "tokens_per_step": 256, "warmup_steps": 1, "eval_interval": 10, "eval_tokens": 600}
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to(shards)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/tokenizer").symlink_to(Path(tokenizer.path).parent)

    def foundry(*args):
        done = subprocess.run(
            [sys.executable, "-m", "foundry.cli", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        )
        return done.returncode, done.stdout + done.stderr

    code, text = foundry("plan", "--probe")
    assert code == 0 and "time: about" in text and "0.40 epochs of 19,444" in text and "memory: about" in text
    assert not (tmp_path / ".foundry/train").exists()
    code, text = foundry("plan", "--profile", "gpu-124m", "--gpu", "H100", "--gpus", "8")
    assert code == 0 and "on 8 x H100, at 40% of its peak" in text and "5,000 steps x 524,288" in text
    code, text = foundry("inspect", "--step", "3")
    assert code == 0 and text.startswith("step 3 reads batch 2: 8 rows of 32 tokens") and "row 7: " in text
    code, text = foundry("inspect", "--step", "31")
    assert code == 1 and "must lie in 1 to 30" in text
