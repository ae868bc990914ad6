"""Drives the server's page in a browser, over a backend that writes what a test says."""

from contextlib import contextmanager

from small_server import SmallServer, listening, version_of
from text_backend import TextBackend


@contextmanager
def scripted_server(model, tokenizer, text="", keys=None, facts=None, **config):
    backend = TextBackend(tokenizer)
    backend.text = text
    server = SmallServer(version_of(model, tokenizer, backend, **(facts or {})), keys, **config)
    with listening(server) as url:
        yield url, server, backend


def ready(page):
    page.wait("document.querySelector('.intro')")
    return page


def ask(page, text):
    page.fill("#prompt", text)
    page.press("Enter", "Control")


def answered(page, versions=1):
    page.wait(f"!document.querySelector('.busy') && document.querySelectorAll('.foot .numbers').length >= {versions}")
    return page


def shown(page, at=0):
    return page.evaluate(f"document.querySelectorAll('.turn.assistant .text')[{at}].textContent")
