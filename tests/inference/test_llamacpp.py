"""llama.cpp behind the interface of our engine: the same tokens, the same ends, and nothing that is ignored."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from engines import end_of, ids_of, make_engine, random_model, run, text_of, tokens_of

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import Sampling
from foundry.inference.request import ClosedError, Finished, QueueFullError, Request

pytest.importorskip("xllamacpp")

GREEDY = Sampling(0.0)
PROMPT = (1, *range(300, 330))


@pytest.fixture(scope="module")
def model():
    return random_model(tie_embeddings=False)


@pytest.fixture(scope="module")
def path(model, tokenizer, tmp_path_factory):
    from foundry.export.gguf_file import export_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf"
    export_gguf(model, tokenizer, path, "f32", "tiny")
    return path


def start(path, tokenizer, **options):
    from foundry.inference.llamacpp import LlamaCpp

    return LlamaCpp(path, tokenizer, 160, **{"slots": 2, "exact": True, "threads": 1, **options})


@pytest.fixture(scope="module")
def backend(path, tokenizer):
    backend = start(path, tokenizer)
    yield backend
    backend.close()


def ask(backend, *requests):
    """The events of each request, all submitted at once."""
    everything, done = [], []
    for request in requests:
        events, end = [], threading.Event()

        def listen(event, events=events, end=end):
            events.append(event)
            if isinstance(event, Finished):
                end.set()

        backend.submit(request, listen)
        everything.append(events)
        done.append(end)
    assert all(end.wait(60) for end in done)
    return everything


def test_greedy_tokens_text_and_log_probabilities_are_those_of_our_engine(model, tokenizer, backend):
    how = Sampling(0.0, logit_bias=tuple((tokenizer.id_of(f"<0x{b:02X}>"), -100.0) for b in range(0x80, 0x100)))
    requests = [Request((*PROMPT[: 5 + i],), how, 30, stop_ids=(2,), logprobs=3) for i in range(6)]
    ours, theirs = run(make_engine(model, tokenizer), requests), ask(backend, *requests)
    for a, b in zip(ours, theirs, strict=True):
        assert ids_of(a) == ids_of(b) and text_of(a) == text_of(b), end_of(b)
        assert (end_of(a).reason, end_of(a).stop, end_of(a).completion_tokens) == (
            end_of(b).reason, end_of(b).stop, end_of(b).completion_tokens,
        )  # fmt: skip
        for x, y in zip(tokens_of(a), tokens_of(b), strict=True):
            assert y.logprob == pytest.approx(x.logprob, abs=1e-3)
            assert [i for i, _ in x.top] == [i for i, _ in y.top]
    assert any(tokenizer.is_byte(i) for e in theirs for i in ids_of(e))


def test_bytes_that_llamacpp_holds_back_are_told_apart(tokenizer, backend):
    a, b, c = (tokenizer.id_of(f"<0x{byte:02X}>") for byte in "\u9f98".encode())
    chunk = {"tokens": [c], "completion_probabilities": [{"bytes": list("\u9f98".encode())}]}
    assert backend._held(chunk, 2) == [a, b]
    chunk = {"tokens": [c], "completion_probabilities": [{"bytes": list(b"\xe9 the\x98")}]}
    with pytest.raises(Exception) as error:  # another token came between
        backend._held(chunk, 2)
    assert "not valid Unicode" in error.value.finished.message


def test_stop_texts_and_ids_end_an_answer_as_in_our_engine(model, tokenizer, backend):
    (free,) = ask(backend, Request(PROMPT, GREEDY, 30))
    text, ids = text_of(free), ids_of(free)
    assert len(text) > 8
    requests = [
        Request(PROMPT, GREEDY, 30, stop=(text[4:7],)),
        Request(PROMPT, GREEDY, 30, stop_ids=(ids[6],)),
        Request(PROMPT, GREEDY, 400),
        Request(PROMPT, GREEDY, 0),
    ]
    for a, b in zip(run(make_engine(model, tokenizer), requests), ask(backend, *requests), strict=True):
        assert text_of(a) == text_of(b)
        assert (end_of(a).reason, end_of(a).stop) == (end_of(b).reason, end_of(b).stop)


def test_a_seed_repeats_an_answer_and_one_is_drawn(backend):
    request = Request(PROMPT, Sampling(1.0, top_k=50, top_p=0.95, min_p=0.01), 20, seed=7)
    first, second, other = (
        ask(backend, r)[0] for r in (request, request, Request(PROMPT, request.sampling, 20, seed=8))
    )
    assert ids_of(first) == ids_of(second) != ids_of(other)
    assert end_of(second).cached_tokens > 0
    assert 0 <= backend.submit(Request(PROMPT, max_tokens=1), lambda e: None).seed < 2**32


def test_control_symbols_and_bad_words_are_never_generated(backend):
    how = Sampling(1.0, logit_bias=((0, 50.0), (1, 50.0), (2, 50.0), (300, 60.0)), bad_words=((300,),))
    (events,) = ask(backend, Request(PROMPT, how, 30, seed=1))
    assert (
        end_of(events).completion_tokens == 30 and len(ids_of(events)) > 20 and not {0, 1, 2, 300} & set(ids_of(events))
    )


class Anything:
    def start(self):
        raise AssertionError


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("presence_penalty", {"sampling": Sampling(presence_penalty=0.5)}),
        ("frequency_penalty", {"sampling": Sampling(frequency_penalty=0.5)}),
        ("dynatemp_range", {"sampling": Sampling(dynatemp_range=0.5)}),
        ("top_p_decay", {"sampling": Sampling(top_p_decay=0.9)}),
        ("min_tokens", {"sampling": Sampling(min_tokens=2)}),
        ("bad_words", {"sampling": Sampling(bad_words=((5, 6),))}),
        ("constraint", {"constraint": Anything()}),
        ("prompt_logprobs", {"prompt_logprobs": 0}),
        ("past_context", {"past_context": "slide"}),
        ("seed", {"seed": 2**32}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(backend, name, options):
    with pytest.raises(ConfigError, match=rf"cannot honour {name} \("):
        backend.submit(Request(PROMPT, **options), lambda e: None)


def test_prompts_that_do_not_fit_are_refused(backend):
    with pytest.raises(ConfigError, match="at most 159"):
        backend.submit(Request((1,) * 160), lambda e: None)
    with pytest.raises(ConfigError, match=r"in \[0, 400\), got 400"):
        backend.submit(Request((1, 400)), lambda e: None)


def test_cancelled_and_late_requests_end_and_the_queue_is_bounded(path, tokenizer):
    backend = start(path, tokenizer, slots=1, queue=1)
    ends, running = [], threading.Event()

    def listen(event):
        running.set()
        if isinstance(event, Finished):
            ends.append(event.reason)

    first = backend.submit(Request(PROMPT, Sampling(1.0), 129), listen)
    assert running.wait(30)
    second = backend.submit(Request(PROMPT, max_tokens=2), listen)
    with pytest.raises(QueueFullError):
        backend.submit(Request(PROMPT), listen)
    second.cancel()
    first.cancel()
    (late,) = [ask(backend, Request(PROMPT, max_tokens=100, deadline=time.monotonic()))[0]]
    assert end_of(late).reason == "timeout"
    backend.close()
    assert ends[1] == "cancelled" and ends[0] in ("cancelled", "length")
    with pytest.raises(ClosedError):
        backend.submit(Request(PROMPT), listen)
    assert backend._child.returncode == 0


def test_a_crash_is_a_clear_error(path, tokenizer):
    backend = start(path, tokenizer)
    os.kill(backend._child.pid, signal.SIGKILL)
    backend._child.wait()
    with pytest.raises(ClosedError, match=r"llama\.cpp died of SIGKILL"):
        backend.submit(Request(PROMPT), lambda e: None)
    backend.close()


def test_a_crash_ends_the_running_request_with_an_error(path, tokenizer):
    backend = start(path, tokenizer)
    events, killed = [], []

    def listen(event):
        events.append(event)
        if not killed:
            killed.append(True)
            os.kill(backend._child.pid, signal.SIGKILL)

    backend.submit(Request(PROMPT, Sampling(1.0), 129), listen)
    backend.close()
    assert end_of(events).reason == "error" and "SIGKILL" in end_of(events).message


def test_a_file_that_llamacpp_cannot_load_is_an_error_with_its_words(tokenizer, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(FoundryError, match=r"llama.cpp cannot load damaged.gguf: llama.cpp (ended|died)"):
        start(damaged, tokenizer)


def test_the_child_ends_with_its_parent(path, tokenizer):
    code = f"""
        import os, signal
        from foundry.inference.llamacpp import LlamaCpp
        from foundry.tokenizers import Tokenizer
        backend = LlamaCpp(__import__("pathlib").Path({str(path)!r}), Tokenizer({str(tokenizer.path)!r}), 160, slots=1)
        print(backend._child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        with open(f"/proc/{pid}/stat") as f:
            if f.read().split()[2] == "Z":
                break
        time.sleep(0.05)
    else:
        pytest.fail("the child outlived its parent")
