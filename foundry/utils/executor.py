"""Work that is divided into tasks: a pure function mapped over them by threads, by processes, or by Ray.

Results come in the order of the tasks, for any number of workers and any order of completion. The function gets a
context that is sent to each worker only once, and results that are large go to files. Ray workers need the same file
system (one machine, or a shared folder).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from foundry.config import ConfigError, FoundryError, MissingPackageError
from foundry.config.schema import Runtime
from foundry.utils.device import cpu_cores
from foundry.utils.process import as_worker

AHEAD = 64  # tasks per worker that may be submitted: so many that one slow task does not keep the other workers idle


def worker_count(runtime: Runtime) -> int:
    """Worker processes: `runtime.workers`, or one for each core that this process may use."""
    return runtime.workers or cpu_cores()


class WorkerPool:
    """Processes of this machine that share a context; they are started by the first `map`, and end with the block.

    Args:
        workers: number of processes.
        context: the first argument of every function that is mapped; it is sent to each worker once.
        ahead: tasks per worker that are submitted before the oldest result is taken. Their results wait in memory, so
            few where results are large.
        set_up: called once in each worker with the context that was sent; what it returns is the context of the
            functions. It is a function of a module (it is sent by name).
    """

    def __init__(
        self, workers: int, context: Any, ahead: int = AHEAD, set_up: Callable[[Any], Any] | None = None
    ) -> None:
        self._workers, self._ahead, self._start_arguments = workers, ahead, (context, set_up)
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._processes:
            self._processes.shutdown(wait=True, cancel_futures=True)

    @property
    def started(self) -> bool:
        return self._processes is not None

    def map(self, function: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """`function(context, task)` of each task, in their order; an error of the function is raised as it is.

        Args:
            function: a function of a module (it is sent by name).

        Raises:
            FoundryError: if a worker process was killed.
        """
        if self._processes is None:
            self._processes = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start, self._start_arguments
            )
        submit = partial(self._processes.submit, _call, function)
        try:
            for future in _in_order(submit, tasks, self._ahead * self._workers):
                yield future.result()
        except BrokenProcessPool:
            raise FoundryError(
                f"one of {self._workers} worker processes was killed (perhaps because memory ran out): run the same "
                "command again; if it happens twice, set a smaller runtime.workers, and in the clean stage a smaller "
                "runtime.unit_bytes. Units that the clean stage has finished are kept"
            ) from None


def map_tasks(
    function: Callable[[Any, Any], Any], context: Any, tasks: Sequence[Any], runtime: Runtime
) -> Iterator[Any]:
    """`function(context, task)` of each task, in their order, by what `runtime` says: this process, several, or Ray.

    Args:
        function: a function of a module (it is sent by name).

    Raises:
        FoundryError: if a worker was killed; an error of the function itself is raised as it is.
    """
    workers = min(worker_count(runtime), len(tasks))
    if runtime.executor == "ray":
        yield from _ray(function, context, tasks, runtime)
    elif workers <= 1:
        for task in tasks:
            yield function(context, task)
    else:
        with WorkerPool(workers, context) as pool:
            yield from pool.map(function, tasks)


def map_in_threads(
    function: Callable[[Any], Any], tasks: Iterable[Any], workers: int, ahead: int = AHEAD
) -> Iterator[Any]:
    """`function(task)` of each task, in their order, by threads: they start at once and share memory, but only what
    releases Python's lock (array operations, reading) runs beside each other.

    Args:
        ahead: tasks per thread that are submitted before the oldest result is taken.
    """
    threads = ThreadPoolExecutor(workers)
    try:
        for future in _in_order(partial(threads.submit, function), tasks, ahead * workers):
            yield future.result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _in_order(submit: Callable[[Any], Any], tasks: Iterable[Any], most: int) -> Iterator[Any]:
    """What `submit` returns for each task, in their order; at most `most` are submitted before the oldest is taken."""
    submitted: deque[Any] = deque()
    for task in tasks:
        submitted.append(submit(task))
        if len(submitted) > most:
            yield submitted.popleft()
    yield from submitted


_context: Any = None  # of a worker process


def _start(context: Any, set_up: Callable[[Any], Any] | None) -> None:
    global _context
    as_worker()
    _context = set_up(context) if set_up else context


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    return function(_context, task)


def _ray(function: Callable[[Any, Any], Any], context: Any, tasks: Sequence[Any], runtime: Runtime) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingPackageError("ray", "ray", "runtime.executor is ray") from None

    started_here = not ray.is_initialized()
    if started_here:
        address = runtime.ray_address
        local = {} if address else {"num_cpus": max(2, worker_count(runtime)), "include_dashboard": False}
        try:
            if address:  # Ray itself waits for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
        except (OSError, RuntimeError, ValueError) as e:
            if "AuthToken" in str(e.__cause__):
                raise ConfigError(
                    f"runtime.ray_address {address!r}: that Ray cluster asks for a token; set RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH and RAY_AUTH_MODE=token"
                ) from None
            raise ConfigError(
                f"runtime.ray_address {address!r}: no Ray cluster answers at that HOST:PORT ({e})"
            ) from None
    try:
        shared = ray.put(context)
        remote = ray.remote(function)
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        for result in _in_order(lambda task: remote.remote(shared, task), tasks, most):
            try:
                yield ray.get(result)
            except ray.exceptions.RayTaskError as e:
                raise (e.cause if isinstance(e.cause, FoundryError) else e) from None
            except ray.exceptions.RayError as e:
                raise FoundryError(
                    f"a Ray worker was lost ({type(e).__name__}: {e}); units that the clean stage has finished are "
                    "kept: run the same command again"
                ) from None
    finally:
        if started_here:
            ray.shutdown()
