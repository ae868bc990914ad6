"""A backend that writes what a test says, token by token, and waits where the test wants it to."""

import math
import threading

from foundry.inference.request import Delta, Finished, PromptScores, QueueFullError, Scored, Stats


class Ticket:
    def __init__(self, seed):
        self.seed, self.cancelled = seed, threading.Event()

    def cancel(self):
        self.cancelled.set()


class TextBackend:
    """Implements `foundry.inference.request.Backend`.

    Attributes:
        text: of the next answers.
        requests: that came, with their tickets.
        stop_after: tokens after which an answer waits for `go_on`; None: it does not.
        full: whether the queue is full.
        failure: with what an answer ends after its text; None: it is complete.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.text, self.requests = tokenizer, "", []
        self.stop_after, self.go_on, self.full, self.failure = None, threading.Event(), False, None

    def submit(self, request, listener):
        if self.full:
            raise QueueFullError(7)
        ticket = Ticket(request.seed)
        self.requests.append((request, ticket))
        threading.Thread(target=self._write, args=(request, listener, ticket), daemon=True).start()
        return ticket

    def _write(self, request, listener, ticket):
        ids = self.tokenizer.encode(self.text)[: request.max_tokens]
        if request.prompt_logprobs is not None:
            listener(PromptScores(tuple(self._scored(i, request.prompt_logprobs) for i in request.ids)))
        stream = self.tokenizer.stream()
        for n, token in enumerate(ids):
            while n == self.stop_after and not self.go_on.wait(0.01) and not ticket.cancelled.is_set():
                pass
            if ticket.cancelled.is_set():
                listener(Finished("cancelled"))
                return
            listener(Delta(stream.add(token), (self._scored(token, request.logprobs),)))
        reason = "error" if self.failure else "stop"
        counts = {"prompt_tokens": len(request.ids), "completion_tokens": len(ids)}
        listener(Finished(reason, message=self.failure or "", **counts))

    def _scored(self, token, wanted):
        """Probability 1/8 (three bits) for what is written; an alternative has one half."""
        if wanted is None:
            return Scored(token)
        other = self.tokenizer.encode(" salt")[0]
        top = ((other, math.log(1 / 2)), (token, math.log(1 / 8)))[:wanted]
        return Scored(token, math.log(1 / 8), top)

    def stats(self):
        return Stats(slots=8, queue=8)

    def close(self, drain=True):
        pass
