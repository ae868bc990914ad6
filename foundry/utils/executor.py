"""Work cut into units: a pure function mapped over unit numbers by this machine's processes, or by Ray.

Results come in the order of the units, whatever the number of workers and the order of completion. A function gets a
context that is sent to each worker once, and returns little: what is large goes to files. Ray workers need the same
file system (one machine, or a shared folder).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from foundry.config import ConfigError, FoundryError
from foundry.config.schema import Runtime
from foundry.utils.device import cpu_cores
from foundry.utils.process import as_worker

_context: Any = None


def cores(runtime: Runtime) -> int:
    """Worker processes: `runtime.workers`, or as many as this process may use cores."""
    return runtime.workers or cpu_cores()


def map_units(
    function: Callable[[Any, Any], Any], context: Any, items: Sequence[Any], runtime: Runtime
) -> Iterator[Any]:
    """`function(context, item)` of each item, in their order.

    Args:
        function: a module's function (it is sent by name).

    Raises:
        FoundryError: if a worker process was killed; an error of the function itself comes as it is.
    """
    if runtime.executor == "ray":
        yield from _ray(function, context, items, runtime)
        return
    workers = min(cores(runtime), len(items))
    if workers <= 1:
        for item in items:
            yield function(context, item)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(context,)
    )
    try:
        waiting = [pool.submit(_call, function, item) for item in items]
        for future in waiting:
            yield future.result()
    except BrokenProcessPool:
        raise FoundryError(
            f"one of {workers} worker processes was killed (out of memory, perhaps). Finished units are kept: run the same "
            "command again, with a smaller runtime.workers or runtime.unit_bytes if it happens twice"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(context: Any) -> None:
    global _context
    as_worker()
    _context = context


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_context, item)


def _ray(function: Callable[[Any, Any], Any], context: Any, items: Sequence[Any], runtime: Runtime) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("runtime.executor is ray, which is not installed: pip install 'foundry-lm[ray]'") from None

    mine = not ray.is_initialized()
    if mine:
        address = runtime.ray_address
        local = {} if address else {"num_cpus": max(2, cores(runtime)), "include_dashboard": False}
        try:
            if address:  # Ray itself waits for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
        except (OSError, RuntimeError, ValueError) as e:
            if "AuthToken" in str(e.__cause__):
                raise ConfigError(
                    f"runtime.ray_address {address!r}: that Ray cluster wants a token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                    "and RAY_AUTH_MODE=token"
                ) from None
            raise ConfigError(
                f"runtime.ray_address {address!r}: no Ray cluster answers at that HOST:PORT ({e})"
            ) from None
    try:
        shared = ray.put(context)
        remote = ray.remote(function)
        waiting = [remote.remote(shared, item) for item in items]
        for one in waiting:
            try:
                yield ray.get(one)
            except ray.exceptions.RayTaskError as e:
                raise (e.cause if isinstance(e.cause, FoundryError) else e) from None
            except ray.exceptions.RayError as e:
                raise FoundryError(
                    f"a Ray worker was lost ({type(e).__name__}: {e}); finished units are kept"
                ) from None
    finally:
        if mine:
            ray.shutdown()
