"""Trainings in processes of their own, which tests kill.

The processes are forked from a server that has imported PyTorch and in which nothing else has run, so that one starts
in some hundredths of a second. `FOUNDRY_KILLS=100 pytest -k mistake_19_kills tests/chat` kills each kind 100 times.
"""

import multiprocessing
import os
import random
import shutil
import socket
import time
from contextlib import contextmanager

from foundry.config import Runtime

KILLS = int(os.environ.get("FOUNDRY_KILLS") or 0)

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        *("foundry.chat.sft", "foundry.chat.rl_training", "foundry.chat.pair_training"),
        *("foundry.models.adapter_files", "torch.distributed.fsdp"),
    ]
)


@contextmanager
def process_of(rank):
    """In a process: its world; `rank` is (this process, their number, a port) of several, or None."""
    from foundry.utils.distributed import world

    if rank:
        names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "MASTER_ADDR")
        os.environ |= dict(zip(names, [*map(str, rank), str(rank[0]), "127.0.0.1"], strict=True))
    with world(Runtime(device="cpu")) as here:
        yield here


def sender(progress):
    """A callback that sends the number of each step through a pipe, if there is one."""
    from foundry.utils.events import MetricsCallback

    class Sent(MetricsCallback):
        def log(self, step, metrics):
            if progress is not None and "loss" in metrics:
                progress.send(step)

        def back_to(self, step):
            raise AssertionError("these runs never roll back")

    return Sent()


def start(work, job, processes=1):
    """The processes of `work(job, pipe, rank)`, and the pipe to which the first one sends its steps."""
    receive, send = server.Pipe(duplex=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = [(r, processes, port) for r in range(processes)] if processes > 1 else [None]
    started = [server.Process(target=work, args=(job, send if not r or r[0] == 0 else None, r)) for r in ranks]
    for p in started:
        p.start()
    send.close()
    return started, receive


def drain(receive, until=None):
    """Reads steps until one of this number, or to the end; returns the last one."""
    step = None
    try:
        while step is None or until is None or step < until:
            step = receive.recv()
    except EOFError:
        pass
    return step


def run(work, job, processes=1):
    """From the start to the end."""
    started, receive = start(work, job, processes)
    drain(receive)
    for p in started:
        p.join(120)
        assert p.exitcode == 0


def kill_at_random(work, job, results, kills, steps, seed):
    """Kills a run of so many steps at random moments and lets it end; its results are the same each time.

    Args:
        kills: within one run. With `FOUNDRY_KILLS` as many runs, one after another, as make up that number.
        results: of a job that has ended.
    """
    rng, done, found = random.Random(seed), 0, []
    while done < (KILLS or kills):
        at, killed = 0, 0
        while killed < kills:
            (process,), receive = start(work, job)
            at = drain(receive, until=min(at + rng.randrange(1, max(2, steps // 4)), steps - 1)) or at
            if KILLS:
                time.sleep(rng.random() / 20)
            process.kill()
            process.join()
            killed += process.exitcode == -9
            if process.exitcode == 0:  # it ended before it was killed
                break
        assert KILLS or not job.out.exists()
        run(work, job)
        found.append(results(job))
        done += killed
        if done < KILLS:
            shutil.rmtree(job.state)
            shutil.rmtree(job.out)
    if KILLS:
        print(f"\n{done} kills in {len(found)} runs of {steps} steps")
    assert all(one == found[0] for one in found)
    return found[0]
