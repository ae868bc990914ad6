"""32 clients for a while, with cancellations, malformed bodies and clients that vanish: nothing grows.

`make soak minutes=20` prints the figures of the documentation; without minutes it is a test of 20 seconds.
"""

import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter

import psutil
import pytest
from served_process import make_export, serving, tiny_model, write_params
from small_server import wait_for

pytestmark = pytest.mark.slow

MINUTES = float(os.environ.get("FOUNDRY_SOAK_MINUTES") or 1 / 3)
SEED = int(os.environ.get("FOUNDRY_SOAK_SEED") or 1)
CLIENTS = 32
PROMPTS = ["The salt", "Boil water and", "A river", "Great", "onion " * 20]
MALFORMED = [
    b"{",
    b'{"prompt": "\xff"}',
    b"[" * 500,
    b'{"prompt": "a", "n": 100000}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "no_such_key": 1}',
    b"null",
]


def request(body, path="/v1/completions"):
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + body


def asked(choice, stream):
    return json.dumps(
        {"prompt": PROMPTS[choice], "max_tokens": 24, "temperature": 0.8, "seed": choice, "stream": stream}
    ).encode()


async def client(port, until, rng, seen, texts):
    """One client after another at one place; each does one thing."""
    while time.monotonic() < until:
        what = rng.choices(["whole", "stream", "cancel", "malformed", "headers", "body"], [5, 4, 4, 3, 1, 1])[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            choice = rng.randrange(len(PROMPTS))
            if what in ("whole", "stream", "cancel"):
                writer.write(request(asked(choice, what != "whole")))
            elif what == "malformed":
                writer.write(request(rng.choice(MALFORMED)))
            elif what == "headers":
                writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
            else:
                writer.write(request(asked(choice, False))[:-5])
            await writer.drain()
            if what == "cancel":
                await reader.read(rng.randrange(1, 400))
            elif what in ("headers", "body"):
                await asyncio.sleep(rng.random() * 0.05)
            else:
                answer = await reader.read()
                status = int(answer[9:12])
                seen[what, status] += 1
                if what == "whole" and status == 200:
                    texts[choice].add(json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"])
                continue
            seen[what, 0] += 1
        finally:
            writer.close()


def measure(process):
    with process.oneshot():
        return process.memory_info().rss, process.num_fds(), process.num_threads()


def quiet(served):
    """Waits until nothing runs and every connection is closed but the one that asks."""

    def numbers():
        text = served.call("/metrics").body.decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("foundry_"))
        return [float(values[f"foundry_{k}"]) for k in ("requests_running", "requests_waiting", "connections")]

    wait_for(lambda: numbers()[:2] == [0, 0] and numbers()[2] <= 1, 60)


def test_nothing_grows_under_cancellations_malformed_bodies_and_vanishing_clients(tokenizer, tmp_path):
    make_export(tmp_path / "artifacts/export", tiny_model(1), tokenizer)
    write_params(tmp_path, header_seconds=2.0, body_seconds=2.0, record="recorded", record_bytes=1 << 20)
    seen, texts = Counter(), {i: set() for i in range(len(PROMPTS))}
    with serving(tmp_path, "artifacts/export") as served:
        port = int(served.url.rpartition(":")[2])
        process = psutil.Process(served.process.pid)

        def load(seconds, seed):
            async def clients():
                until = time.monotonic() + seconds
                each = (client(port, until, random.Random(seed + i), seen, texts) for i in range(CLIENTS))
                await asyncio.gather(*each)

            asyncio.run(clients())
            quiet(served)
            return measure(process)

        rounds = 10
        seconds = MINUTES * 60 / (rounds + 2)
        load(2 * seconds, SEED)  # caches, pools and the allocator reach their size
        points = [load(seconds, SEED + 1000 * (n + 1)) for n in range(rounds)]
        log_lines = len(served.lines)
        assert served.stop() == 0
    memory, files, threads = zip(*points, strict=True)
    slope = statistics.linear_regression(range(rounds), memory).slope / 2**20
    print("\nMiB after each round:", *(round(m / 2**20) for m in memory))
    print(
        f"{MINUTES:g} minutes, {CLIENTS} clients, {sum(seen.values()):,} requests ({log_lines:,} lines of log): "
        f"memory {memory[0] / 2**20:.1f} to {memory[-1] / 2**20:.1f} MiB ({slope:+.2f} per {seconds:.0f} s), "
        f"files {files[0]} to {files[-1]}, threads {threads[0]} to {threads[-1]}"
    )
    print(", ".join(f"{what} {status or ''}: {n:,}" for (what, status), n in sorted(seen.items())))
    assert {status for (what, status) in seen if what in ("whole", "stream")} <= {200, 429}
    assert {status for (what, status) in seen if what == "malformed"} == {400}
    assert all(len(found) == 1 for found in texts.values())  # one text per request, whatever else ran
    assert max(files) - min(files) <= 1  # the connection that asks may still be there
    assert max(threads) == min(threads)
    # In the first minutes oneDNN still compiles a kernel for each number of rows; then nothing may be added.
    half = rounds // 2
    assert statistics.mean(memory[half:]) - statistics.mean(memory[:half]) < (8 if MINUTES > 10 else 64) * 2**20
