"""Checkpoints: written in the background, kept as promised, never lost to a full disk."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from foundry.config import CheckpointError, ConfigError, DiskError, ModelConfig, Runtime, TrainConfig
from foundry.models.accounting import count_params
from foundry.training import Trainer
from foundry.training import checkpoints as module
from foundry.training import trainer as trainer_module
from foundry.training.checkpoints import Checkpoints
from foundry.utils import checkpoint, files
from foundry.utils.checkpoint import Box, load_checkpoint, read_checkpoint, write_marker, write_part
from foundry.utils.distributed import World
from foundry.utils.files import sha256_tree

MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=12, tokens_per_step=256, warmup_steps=1, log_interval=1, eval_interval=3, eval_tokens=600)


def tensors(i):
    return {"x": torch.full((10,), float(i))}


def test_the_newest_and_the_pinned_stay(tmp_path):
    kept = Checkpoints(tmp_path, keep=2, pinned=frozenset({4}))
    for step in range(1, 10):
        kept.save(step, tensors(step), {"n": step})
    kept.wait()
    assert kept.steps() == [4, 8, 9]
    assert torch.equal(kept.load_newest()[0]["x"], tensors(9)["x"])
    assert kept.load_newest(at_most=7)[1] == {"n": 4}
    kept.remove_after(4)
    assert kept.steps() == [4]


def damage(folder, how):
    """A checkpoint as a bad disk, a careless user or a copy that broke off leaves it."""
    part = folder / "part-00000-00000.safetensors"
    if how == "flipped":
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)
    elif how == "cut":
        part.write_bytes(part.read_bytes()[:-1])
    elif how == "no state":
        (folder / "state.json").unlink()
    elif how == "empty marker":
        (folder / "checkpoint.json").write_text("")
    elif how == "no marker":
        (folder / "checkpoint.json").unlink()
    elif how == "changed marker":
        text = (folder / "checkpoint.json").read_text()
        (folder / "checkpoint.json").write_text(text.replace('"shape": [', '"shape": [1'))
    elif how == "other format":
        (folder / "checkpoint.json").write_text('{"format": 1, "sha256": {}}')
    else:
        shutil.rmtree(folder)


DAMAGES = ("flipped", "cut", "no state", "empty marker", "no marker", "changed marker", "other format", "gone")


def test_of_any_subset_of_damaged_checkpoints_the_newest_good_one_is_used(tmp_path, caplog):
    """All subsets of four checkpoints, each kind of damage at each place; then the run saves and prunes as ever."""
    made = Checkpoints(tmp_path / "made", keep=4)
    for step in range(1, 5):
        made.save(step, tensors(step), {"n": step})
    made.wait()
    for bad in range(16):
        hows = {s: DAMAGES[(bad + 3 * s) % len(DAMAGES)] for s in range(1, 5) if bad >> (s - 1) & 1}
        kept = Checkpoints(Path(shutil.copytree(tmp_path / "made", tmp_path / str(bad))), keep=1)
        for step, how in hows.items():
            damage(kept.folder / f"step-{step:08d}", how)
        caplog.clear()
        found = kept.load_newest()
        best = max({1, 2, 3, 4} - hows.keys(), default=None)
        assert (found and found[1]) == (best and {"n": best}), hows
        met = {s: how for s, how in hows.items() if how != "gone" and (best is None or s > best)}
        assert sum("is damaged and was moved to" in r.message for r in caplog.records) == len(met)
        assert ("no checkpoint of this run can be used" in caplog.text) == (best is None and bool(met))
        kept.save(9, tensors(9), {"n": 9})
        kept.wait()
        assert kept.steps() == [9] and kept.load_newest()[1] == {"n": 9}, hows
        assert {p.name for p in kept.folder.glob("damaged/*")} == {f"step-{s:08d}" for s in met}


def test_nothing_is_removed_before_the_checkpoint_just_written_was_read_back(tmp_path, monkeypatch, caplog):
    """A disk that changes what it takes: the bad one is set aside, the one before stays, the run is not stopped."""
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, tensors(1), {})
    kept.wait()

    def rotten(folder, *args):
        marked(folder, *args)
        damage(folder, "flipped")

    marked = module.write_marker
    with monkeypatch.context() as m:
        m.setattr(module, "write_marker", rotten)
        kept.save(2, tensors(2), {})
        kept.wait()
    assert "step 2 is damaged" in caplog.text and kept.steps() == [1]
    assert torch.equal(kept.load_newest()[0]["x"], tensors(1)["x"])
    kept.save(3, tensors(3), {})
    kept.wait()
    assert kept.steps() == [3]


@pytest.mark.parametrize(("writers", "readers"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (5, 4)])
def test_a_checkpoint_of_some_processes_is_read_by_others_part_by_part(tmp_path, monkeypatch, writers, readers):
    """Rows are divided as FSDP divides them: some processes have fewer, or none."""
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 300)
    whole = {"a": torch.randn(7, 5), "b": torch.randn(3), "c": torch.randn(12, 4, 2), "d": torch.tensor(3.0)}

    def boxes(rank, size):
        found = {}
        for name in "abc":
            rows = -(-len(whole[name]) // size)
            begin, end = min(rank * rows, len(whole[name])), min((rank + 1) * rows, len(whole[name]))
            rest = tuple(whole[name].shape[1:])
            found[name] = Box((begin,) + (0,) * len(rest), (end - begin, *rest), tuple(whole[name].shape))
        return found

    def part(name, box):
        return whole[name][box.offset[0] : box.offset[0] + box.size[0]]

    records = []
    for rank in range(writers):
        mine = boxes(rank, writers)
        records.append(
            write_part(tmp_path, rank, {k: part(k, mine[k]) if k in mine else v for k, v in whole.items()}, mine)
        )
    write_marker(tmp_path, records, {"n": 1})
    assert (
        sum(f.stat().st_size for f in tmp_path.glob("part-*"))
        < 2 * sum(t.nbytes for t in whole.values()) + 200 * len(records) * 4
    )
    read, total = [], load_checkpoint(tmp_path)[0]
    real = checkpoint._verified
    monkeypatch.setattr(
        checkpoint, "_verified", lambda path, name, marker: (read.append(name), real(path, name, marker))[1]
    )
    for rank in range(readers):
        mine = boxes(rank, readers)
        got, values = read_checkpoint(tmp_path, lambda name, shape, mine=mine: mine.get(name))
        assert values == {"n": 1} and got.keys() == whole.keys()
        assert all(torch.equal(got[k], part(k, mine[k]) if k in mine else whole[k]) for k in whole), rank
    assert all(torch.equal(total[k], whole[k]) for k in whole)
    if min(readers, writers) > 1:  # nobody reads all files
        assert len(read) < readers * (len(list(tmp_path.glob("part-*"))) + 1)
    lost = next(iter(records[0].files))
    (tmp_path / lost).unlink()
    with pytest.raises(CheckpointError, match=f"{lost} cannot be read"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_changes_after_it_was_verified_is_not_what_is_loaded(tmp_path, monkeypatch):
    """The hash is one of the bytes in memory: each file is read once."""
    checkpoint.save_checkpoint(tmp_path / "c", tensors(1), {"n": 1})
    read = Path.read_bytes

    def swapped(path):
        data = read(path)
        path.write_bytes(bytes(len(data)))
        return data

    with monkeypatch.context() as m:
        m.setattr(Path, "read_bytes", swapped)
        found, values = load_checkpoint(tmp_path / "c")
    assert torch.equal(found["x"], tensors(1)["x"]) and values == {"n": 1}
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_checkpoint(tmp_path / "c")


def test_a_checkpoint_of_which_a_process_wrote_nothing_is_refused(tmp_path):
    box = Box((0,), (2,), (4,))
    write_marker(tmp_path, [write_part(tmp_path, 0, {"a": torch.ones(2)}, {"a": box})], {})
    with pytest.raises(CheckpointError, match="lacks parts of a"):
        load_checkpoint(tmp_path)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The copy is the caller's; what is written is the state of then, not of now."""
    go, written, waited = threading.Event(), module.write_part, []
    monkeypatch.setattr(module, "write_part", lambda *a: (waited.append(go.wait(60)), written(*a))[1])
    kept = Checkpoints(tmp_path, keep=2)
    kept.save(1, tensors(1), {})
    assert kept.steps() == []
    go.set()
    kept.wait()
    assert kept.steps() == [1] and waited == [True]  # False: the caller was held until the writing ended


def test_the_state_is_copied_so_that_later_steps_do_not_reach_into_it(shards, tmp_path):
    trainer = Trainer.from_shards(
        MODEL, TRAIN, shards, runtime=Runtime(device="cpu", precision="float32", threads=1), state=tmp_path
    )
    session = trainer.session()
    state = session.state
    copied, values = state.state_dict()
    before = {k: v.clone() for k, v in copied.items()}
    for _ in range(2):
        session.step(state)
        state.step += 1
        state.curve.append({"step": state.step})
    assert all(torch.equal(before[k], v) for k, v in copied.items()) and values["curve"] == []
    assert not torch.equal(state.model.norm.weight, copied["model/norm.weight"])


def test_a_full_disk_is_told_and_the_checkpoint_before_is_whole(shards, tmp_path, monkeypatch):
    """An injected ENOSPC in the second checkpoint; then room is made and the run ends as if nothing had been."""
    runtime = Runtime(device="cpu", precision="float32", threads=1, checkpoint_interval=4)

    def run(folder):
        return Trainer.from_shards(MODEL, TRAIN, shards, runtime=runtime, state=tmp_path / folder)

    whole = run("whole").fit()
    tried = []

    def full(dir, prefix, suffix):
        """A file whose device takes nothing, as /dev/full does."""
        name = str(dir / f"{prefix}{suffix}")
        open(name, "x").close()
        tried.append(dir)
        return os.open("/dev/full" if "00000008" in str(dir) else name, os.O_WRONLY), name

    with monkeypatch.context() as m:
        m.setattr(files.tempfile, "mkstemp", full)
        with pytest.raises(DiskError, match=r"cannot write in .*No space left.*are free.*at least .* are needed") as e:
            run("cut").fit()
    assert any("00000008" in str(d) for d in tried) and e.value.folder.endswith("checkpoints")
    assert e.value.needed > 12 * count_params(MODEL)
    trainer = run("cut")
    assert trainer.checkpoints.steps() == [4, 5] and not list(trainer.folder.glob("checkpoints/.*"))
    result = trainer.fit()
    assert result.curve == whole.curve
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), whole.model.parameters(), strict=True))


def test_a_disk_that_really_is_full(shards, tmp_path, monkeypatch):
    """On a tmpfs of 300 KiB, where this user may mount one; a checkpoint of this run takes about 340 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs; the test above writes to a device that is full")
    try:
        runtime = Runtime(device="cpu", precision="float32", threads=1, keep_checkpoints=1)
        with pytest.raises(ConfigError, match=r"checkpoints need .* are free"):
            Trainer.from_shards(MODEL, TRAIN, shards, runtime=runtime, state=small)
        monkeypatch.setattr(
            trainer_module, "check_plan", lambda *a, **k: None
        )  # as if the disk had filled up meanwhile
        with pytest.raises(
            DiskError, match=r"cannot write in .*No space left.*are free there, at least .* are needed"
        ) as e:
            Trainer.from_shards(MODEL, TRAIN, shards, runtime=runtime, state=small).fit()
        assert e.value.needed > e.value.free > 200_000  # what was half written is gone again
        assert not list(small.rglob("checkpoint.json")) and not list(small.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", small], check=True)
        shutil.rmtree(small)


SHORT = TRAIN.model_copy(update={"schedule": "wsd", "decay_fraction": 0.5})
RUNTIME = Runtime(device="cpu", precision="float32", threads=1, checkpoint_interval=2, keep_checkpoints=9)


@pytest.fixture(scope="module")
def shorter(shards, tmp_path_factory):
    """(state folder with a run of 12 steps, the weights of one of 20 that began from nothing)."""
    folder = tmp_path_factory.mktemp("shorter")
    Trainer.from_shards(MODEL, SHORT, shards, runtime=RUNTIME, state=folder / "state").fit()
    return folder / "state", longer(shards, folder / "alone").fit().model


def longer(shards, folder):
    return Trainer.from_shards(MODEL, SHORT.model_copy(update={"steps": 20}), shards, runtime=RUNTIME, state=folder)


@pytest.mark.parametrize("how", ["newest damaged", "all damaged", "identity damaged", "pruned meanwhile", "nothing"])
def test_damage_in_another_run_stops_no_new_run(shards, shorter, tmp_path, caplog, monkeypatch, how):
    state = Path(shutil.copytree(shorter[0], tmp_path / "state"))
    (other,) = state.iterdir()
    if how.endswith("damaged"):
        for folder in sorted(other.glob("checkpoints/step-*"), reverse=True)[: 9 if how == "all damaged" else 4]:
            damage(folder, "flipped")
    if how == "identity damaged":
        (other / "identity.json").write_text("{")
    before = sha256_tree(other)
    trainer = longer(shards, state)
    if how == "pruned meanwhile":  # that run's own trainer removed it after it was listed
        found = trainer.run_folder.shorter_runs()
        monkeypatch.setattr(trainer.run_folder, "shorter_runs", lambda: [(found[0][0] + 1, found[0][1]), *found])
    with caplog.at_level("INFO", logger="foundry"):
        model = trainer.fit().model
    from_other = "is the same run up to step" in caplog.text
    assert from_other == (how not in ("all damaged", "identity damaged"))
    warned = "is not used" in caplog.text or "another run is skipped" in caplog.text
    assert warned == (how != "nothing")
    assert sha256_tree(other) == before  # it is that run's, and is left as it is
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), shorter[1].parameters(), strict=True))


def test_a_rollback_without_a_good_checkpoint_is_an_error(shards, tmp_path):
    trainer = Trainer.from_shards(MODEL, TRAIN, shards, runtime=RUNTIME, state=tmp_path)
    state = trainer.session().state
    with pytest.raises(CheckpointError, match="no good checkpoint of step 3 or earlier"):
        trainer.run_folder.load(state, 3)


@pytest.fixture
def peers(monkeypatch):
    """Two processes, of which the test is one: what the other one answers, and which groups were asked."""
    other, groups = {"answer": ("its value", None)}, []
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: f"a group over {backend}")

    def gather(answers, mine, group):
        groups.append(group)
        rank = other["rank"]
        answers[1 - rank], answers[rank] = mine, other["answer"]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

    def writers(rank, divided=True):
        other["rank"] = 1 - rank
        return module.Writers(World(rank, 2, torch.device("cpu")), divided)

    return writers, other, groups


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_divide_the_state_exchange_results_over_a_group_of_their_own(peers, rank):
    writers, _, groups = peers
    both = writers(rank)
    expected = ["mine", "its value"] if rank == 0 else ["its value", "mine"]
    assert both.together(lambda: "mine") == expected and groups == ["a group over gloo"]
    ran = []
    assert both.main(lambda: ran.append(1) or "of rank 0") == ("of rank 0" if rank == 0 else "its value")
    assert ran == [1] * (rank == 0)  # the work of the main process runs only there


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_the_checkpoint_on_both(peers, rank):
    writers, other, _ = peers
    both, ran = writers(rank), []
    other["answer"] = (None, "DiskError: full")
    with pytest.raises(CheckpointError, match=rf"process {1 - rank} could not write its part .*: DiskError: full"):
        both.together(lambda: ran.append(1))
    with pytest.raises(ZeroDivisionError):  # its own error comes first, after the other process was informed
        both.together(lambda: 1 / 0)
    assert ran == [1]


def test_processes_with_the_whole_state_do_not_wait_for_each_other(peers):
    writers, _, groups = peers
    assert writers(1, divided=False).together(lambda: "mine") == ["mine"] and groups == []
    alone = module.Writers(World(0, 1, torch.device("cpu")), True)
    assert alone.together(lambda: "mine") == ["mine"] and alone.main(lambda: "main") == "main" and groups == []


def test_the_folder_or_the_checkpoint_of_another_run_is_refused(shards, tmp_path, caplog):
    def made():
        return Trainer.from_shards(MODEL, TRAIN, shards, runtime=RUNTIME, state=tmp_path)

    trainer = made()
    trainer.fit()
    caplog.set_level("INFO", logger="foundry")
    assert made().session().state.step == 12 and "resumes from the checkpoint of step 12" in caplog.text
    path = trainer.folder / "identity.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), "seed": 2}))
    with pytest.raises(CheckpointError, match=r"(?s)belongs to run .*seed: 2 there, 1 now"):
        made().fit()
    path.write_text(kept)
    state = trainer.session().state
    state.identity = {**state.identity, "seed": 3}
    trainer.checkpoints.save(13, *state.state_dict())
    trainer.checkpoints.wait()
    with pytest.raises(CheckpointError, match=r"(?s)the checkpoint belongs to run .*seed: 3 there, 1 now"):
        made().session()


def test_the_checkpoints_that_a_run_could_begin_from_are_those_of_the_stable_part_newest_first(shards, tmp_path):
    """Of 20 steps, 10 are stable; runs of 12 and 18 steps share 6 and 9 of them."""

    def run(steps, saved, **train):
        config = SHORT.model_copy(update={"steps": steps, **train})
        trainer = Trainer.from_shards(MODEL, config, shards, runtime=RUNTIME, state=tmp_path)
        trainer.folder.mkdir(parents=True)
        (trainer.folder / "identity.json").write_text(json.dumps(trainer.identity))
        for step in saved:
            (trainer.folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        return trainer

    mine = longer(shards, tmp_path)
    a, b = run(12, (3, 6, 8, 12)), run(18, (6, 9, 10))
    run(14, (5,), lr=1e-4)  # another recipe
    skips = run(16, (4,))
    (skips.folder / "skipped.json").write_text("[]")  # read other batches
    for name, text in (("list", "[]"), ("damaged", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity.json").write_text(text)
    found = mine.run_folder.shorter_runs()
    same = sorted([(6, a.folder), (6, b.folder)], key=lambda c: c[1].name)
    assert found == [(9, b.folder), *same, (3, a.folder)]
