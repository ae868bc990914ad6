"""One thread owns the engine; whoever asks it gets an end, whatever happens."""

import threading

import pytest
from engines import end_of, ids_of, make_engine, random_model, result, run

from foundry.config import ConfigError
from foundry.config.sampling import Sampling
from foundry.inference.request import ClosedError, Delta, Finished, QueueFullError, Request
from foundry.inference.worker import Worker

LIMIT = 60  # seconds after which a test gives up waiting


class Client:
    """Collects the events of a request in the engine's thread."""

    def __init__(self):
        self.events, self.first, self.done = [], threading.Event(), threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Delta):
            self.first.set()
        if isinstance(event, Finished):
            self.first.set()
            self.done.set()

    def end(self):
        assert self.done.wait(LIMIT)
        return end_of(self.events)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def worker(model, tokenizer):
    worker = Worker(make_engine(model, tokenizer, 2), queue=4)
    yield worker
    worker.close(drain=False)
    assert not worker._thread.is_alive()


def request(first, n=8, **options):
    return Request((1, first), Sampling(0.0), n, **options)


def endless(first):
    return request(first, 100_000, past_context="slide")


def test_many_threads_get_what_a_single_request_gets(model, tokenizer):
    requests = [Request((1, i), Sampling(1.0), 20, seed=i, logprobs=1) for i in range(5, 25)]
    expected = [result(run(make_engine(model, tokenizer, 1), [r])[0]) for r in requests]
    worker, clients = Worker(make_engine(model, tokenizer, 8), queue=100), [Client() for _ in requests]

    def ask(i):
        worker.submit(requests[i], clients[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close(drain=True)
    assert [result(c.events) for c in clients] == expected


def test_the_queue_is_bounded_and_refuses_at_once(worker):
    running = [Client() for _ in range(2)]
    for i, client in enumerate(running):
        worker.submit(endless(5 + i), client)
    for client in running:
        assert client.first.wait(LIMIT)
    waiting = [Client() for _ in range(4)]
    tickets = [worker.submit(request(7), client) for client in waiting]
    with pytest.raises(QueueFullError, match="4 requests are waiting") as refused:
        worker.submit(request(8), Client())
    assert refused.value.waiting == 4
    stats = worker.stats()
    assert (stats.running, stats.waiting, stats.slots, stats.queue) == (2, 4, 2, 4)
    tickets[0].cancel()
    assert waiting[0].end().reason == "cancelled"
    worker.submit(request(8), Client())


def test_a_cancelled_request_makes_room(worker):
    clients = [Client() for _ in range(3)]
    tickets = [worker.submit(endless(5), clients[0]), worker.submit(endless(6), clients[1])]
    worker.submit(request(7), clients[2])
    assert clients[0].first.wait(LIMIT) and not clients[2].done.is_set()
    tickets[0].cancel()
    assert clients[0].end().reason == "cancelled" and clients[2].end().reason == "length"


def test_draining_finishes_what_was_taken_and_takes_no_more(model, tokenizer):
    worker, clients = Worker(make_engine(model, tokenizer, 2)), [Client() for _ in range(6)]
    for i, client in enumerate(clients):
        worker.submit(request(5 + i, 40), client)
    closing = threading.Thread(target=worker.close)
    closing.start()
    closing.join(LIMIT)
    assert not closing.is_alive() and all(len(ids_of(c.events)) == 40 for c in clients)
    with pytest.raises(ClosedError, match="closing"):
        worker.submit(request(5), Client())
    worker.close()


def test_closing_without_draining_also_ends_a_drain_that_takes_too_long(model, tokenizer):
    worker, clients = Worker(make_engine(model, tokenizer, 2)), [Client() for _ in range(4)]
    for i, client in enumerate(clients):
        worker.submit(endless(5 + i), client)
    draining = threading.Thread(target=worker.close)
    draining.start()
    assert clients[0].first.wait(LIMIT)
    worker.close(drain=False)
    draining.join(LIMIT)
    assert not draining.is_alive() and [c.end().reason for c in clients] == ["cancelled"] * 4


def test_a_bad_request_is_refused_where_it_is_submitted(worker):
    with pytest.raises(ConfigError, match="400"):
        worker.submit(request(400), Client())


def test_no_client_hangs_when_the_engine_itself_fails(model, tokenizer, monkeypatch):
    engine = make_engine(model, tokenizer, 2)
    worker, clients = Worker(engine), [Client() for _ in range(5)]

    def broken():
        raise RuntimeError("a bug of the scheduler")

    monkeypatch.setattr(engine, "_plan", broken)
    taken = 0
    for i, client in enumerate(clients):
        try:
            worker.submit(request(5 + i), client)
        except ClosedError:
            break
        taken += 1
    assert taken
    for client in clients[:taken]:
        end = client.end()
        assert end.reason == "error" and "a bug of the scheduler" in end.message
    worker._thread.join(LIMIT)
    with pytest.raises(ClosedError, match="a bug of the scheduler"):
        worker.submit(request(5), Client())
    worker.close()


def test_the_model_may_fail_for_one_step_and_go_on(worker, monkeypatch):
    runner, client, later = worker._engine.runner, Client(), Client()
    forward = runner.forward

    def broken(pieces):
        monkeypatch.setattr(runner, "forward", forward)
        raise MemoryError("no room")

    monkeypatch.setattr(runner, "forward", broken)
    worker.submit(request(5), client)
    assert client.end().reason == "error" and "no room" in client.end().message
    worker.submit(request(5), later)
    assert later.end().reason == "length"
