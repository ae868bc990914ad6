"""Worker processes: results in order, a bounded number of tasks under way, errors and killed workers reported."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from foundry.config import FoundryError
from foundry.config.schema import Runtime
from foundry.utils.executor import WorkerPool, map_in_threads, map_tasks


def _double(context, task):
    return context * task


def _die(context, task):
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def _refuse(context, task):
    raise FoundryError(f"task {task} is wrong")


def _slow_first(context, task):
    time.sleep(0.2 * (task == 0))
    return task


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    runtime = Runtime(workers=workers)
    assert list(map_tasks(_double, 3, range(300), runtime)) == [3 * i for i in range(300)]
    with pytest.raises(FoundryError, match="task 1 is wrong"):
        list(map_tasks(_refuse, None, [1, 2], runtime))


def test_only_a_few_tasks_are_taken_before_their_results_are():
    taken = []

    def tasks():
        for i in range(40):
            taken.append(i)
            yield i

    with WorkerPool(2, None, ahead=2) as pool:
        for number, result in enumerate(pool.map(_slow_first, tasks())):
            assert result == number and len(taken) <= min(40, number + 2 * 2 + 1)
    assert len(taken) == 40


def test_threads_give_results_in_order_take_few_tasks_and_raise_what_the_function_raises():
    taken, ended = [], []

    def tasks():
        for i in range(40):
            taken.append(i)
            yield i

    def slow_first(task):
        time.sleep(0.2 * (task == 0))
        ended.append(task)
        return task

    for number, result in enumerate(map_in_threads(slow_first, tasks(), 2, ahead=2)):
        assert result == number and len(taken) <= min(40, number + 2 * 2 + 1)
    assert len(taken) == 40 and ended[0] != 0  # beside each other
    with pytest.raises(FoundryError, match="task 7 is wrong"):
        list(map_in_threads(partial(_refuse, None), [7], 2))


def test_one_pool_maps_again_and_its_workers_are_set_up_once():
    with WorkerPool(2, 3, set_up=_twice) as pool:
        assert not pool.started
        assert list(pool.map(_double, [1, 2])) == [6, 12] == list(pool.map(_double, iter([1, 2])))
        assert pool.started


def _twice(context):
    return 2 * context


def test_a_killed_worker_is_reported():
    with pytest.raises(FoundryError, match=r"one of 2 worker processes was killed.*runtime\.workers"):
        list(map_tasks(_die, None, [1, 2, 3], Runtime(workers=2)))


def test_a_missing_ray_cluster_is_reported():
    runtime = Runtime(executor="ray", ray_address="127.0.0.1:9")
    with pytest.raises(FoundryError, match="no Ray cluster answers"):
        list(map_tasks(_double, 1, [1], runtime))


INTERRUPTED = """
import os, signal, sys, time
from foundry.config.schema import Runtime
from foundry.utils.executor import map_tasks

def wait(seconds, task):
    os.write(1, b"working\\n")  # one write per line: two processes share the pipe
    time.sleep(seconds)

if __name__ == "__main__":
    handler, seconds = sys.argv[1:]
    signal.signal(signal.SIGINT, getattr(signal, handler))  # whatever the tests were started with
    list(map_tasks(wait, float(seconds), range(4), Runtime(workers=2)))
"""


@pytest.mark.parametrize(
    ("handler", "seconds", "codes"),
    [("default_int_handler", 60, (-signal.SIGINT, 130)), ("SIG_IGN", 1, (0,))],
    ids=["in a terminal", "in the background of a shell, which ignores Ctrl-C"],
)
def test_an_interrupt_ends_the_workers_as_their_parent_without_tracebacks_of_their_own(
    tmp_path, handler, seconds, codes
):
    """As Ctrl-C in a terminal: SIGINT to every process of the group."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    options = {
        "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        "start_new_session": True,  # a group of its own
        "text": True,
    }
    command = [sys.executable, script, handler, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert [process.stdout.readline() for _ in range(2)] == ["working\n"] * 2
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in codes and errors.count("Traceback") <= (codes != (0,)), errors
