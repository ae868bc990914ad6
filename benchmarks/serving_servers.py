"""Servers against servers, and against llama.cpp alone: parts of `benchmarks.serving`.

Every server is a process of its own, with the same model of random weights; the clients are in this process, on the
same cores.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.rounds import Measure, Rounds, machine, take_turns
from benchmarks.serving_clients import HOST, Load, load
from benchmarks.serving_model import make_files, text_of
from foundry.config import ModelConfig
from foundry.inference import llamacpp_child
from foundry.inference.llamacpp_child import Settings
from foundry.tokenizers.tokenizer import EOS_ID
from foundry.utils.device import cpu_cores

RATE = Measure("tokens/s", more_is_better=True)
NEW = 64  # tokens of an answer to a client
WORDS = 24  # of a client's prompt
WAIT = 120.0  # seconds in which a server has to be ready


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Ends the process after the block."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def llama_server(gguf: Path, context: int, slots: int) -> Iterator[int]:
    """The port of llama.cpp's server, the one in the wheel that `serving.backend: llamacpp` uses."""
    settings = Settings(str(gguf.resolve()), context, slots, cpu_cores(), exact=False)
    command = [sys.executable, "-P", llamacpp_child.__file__, json.dumps(asdict(settings))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with ended(subprocess.Popen(command, **pipes)) as child:
        line = child.stdout.readline() if child.stdout else b""
        if not line:
            raise RuntimeError(f"llama.cpp cannot load {gguf}")
        yield int(json.loads(line)["address"].rsplit(":", 1)[1])


@contextlib.contextmanager
def served(*command: str) -> Iterator[int]:
    """The port of a server that takes `--port`, once its `/ready` answers."""
    port = free_port()
    with ended(subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)) as process:
        wait(port, process)
        yield port


def foundry(folder: Path, weights: str) -> tuple[str, ...]:
    command = Path(sys.executable).parent / "foundry"
    return (str(command), "serve", str(folder), "--weights", weights, "--host", HOST)


def free_port() -> int:
    with socket.socket() as s:
        s.bind((HOST, 0))
        return int(s.getsockname()[1])


def wait(port: int, process: subprocess.Popen) -> None:
    """Returns when `/ready` answers with 200.

    Raises:
        RuntimeError: if the process ends, or does not become ready.
    """
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server has ended with exit code {process.returncode}")
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.01)
    raise RuntimeError(f"the server was not ready within {WAIT:g} s")


def completed(port: int, ids: list[int], new: int) -> None:
    """One greedy answer of llama.cpp's server, its prompt as ids, computed without a cache."""
    body = {"prompt": ids, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    connection = http.client.HTTPConnection(HOST, port, timeout=WAIT)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if answer.get("tokens_predicted") != new:
        raise RuntimeError(f"llama.cpp wrote {answer.get('tokens_predicted')} tokens, not {new}")


def against_llamacpp(
    cfg: ModelConfig, project: Path, rounds: int, ours: Callable[[str], Callable[[], float]], ids: list[int], new: int
) -> None:
    """One text: llama.cpp's formats and ours.

    Args:
        ours: makes the turn of our engine in a number format.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_files(cfg, project, folder, ("bf16", "q8_0"))

        def theirs(kind: str) -> Callable[[], float]:
            port = stack.enter_context(llama_server(folder / f"{kind}.gguf", cfg.max_seq_len, 1))
            completed(port, ids, new)

            def turn() -> float:
                begin = time.perf_counter()
                completed(port, ids, new)
                return new / (time.perf_counter() - begin)

            return turn

        for kind, weights in (("bf16", "bfloat16"), ("q8_0", "int8")):
            sides = {f"llama.cpp {kind}": theirs(kind), f"ours {weights}": ours(weights)}
            take_turns(sides, rounds, RATE).print("stream against llama.cpp", base=f"llama.cpp {kind}")


def clients(size: str, cfg: ModelConfig, project: Path, rounds: int) -> None:
    """8 and 32 clients, streamed: `foundry serve`, llama.cpp's server and, with 8, the plain loop."""
    texts = itertools.cycle([" ".join(t.split()[:WORDS]) for t in text_of(project)])  # each round has texts of its own
    body = {"temperature": 0, "logit_bias": {str(EOS_ID): -100}}
    for count, each in ((8, 4), (32, 2)):
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            make_files(cfg, project, folder, ("bf16",))
            ports = {
                "llama-server": stack.enter_context(llama_server(folder / "bf16.gguf", cfg.max_seq_len, count)),
                "ours": stack.enter_context(served(*foundry(folder / "model", "bfloat16"))),
            }
            if count == 8:
                command = (sys.executable, "-m", "benchmarks.plain_server", "--size", size)
                tokenizer = str(folder / "tokenizer/tokenizer.model")
                ports["plain loop"] = stack.enter_context(served(*command, "--tokenizer", tokenizer))

            def turn(name: str, count: int = count, each: int = each, ports: dict[str, int] = ports) -> Load:
                prompts = list(itertools.islice(texts, count * (1 if name == "plain loop" else each)))
                return load(ports[name], prompts, count, body, NEW, stream=name != "plain loop")

            for name in ports:
                load(ports[name], list(itertools.islice(texts, count)), count, body, 4, stream=name != "plain loop")
            done = take_turns({name: lambda name=name: turn(name) for name in ports}, rounds, RATE)
            done.print(f"{count} clients, {size}", base="llama-server", notes=_first(done))


def _first(done: Rounds[Load]) -> dict[str, str]:
    notes = {}
    for name, loads in done.results.items():
        if loads[0].first:
            notes[name] = f"  p99 to the first token {statistics.median(x.p99() for x in loads):.3f} s"
    return notes


def ready(project: Path, rounds: int) -> None:
    """Prints the seconds from the start of `foundry serve` with a project's export to its readiness."""
    export, taken = project / "artifacts/export", []
    print(machine(), flush=True)
    for _ in range(rounds):
        begin = time.perf_counter()
        with served(*foundry(export, "float32")):
            taken.append(time.perf_counter() - begin)
    print(f"\nready after {statistics.median(taken):.2f} s (median of {rounds}; best {min(taken):.2f} s)")
