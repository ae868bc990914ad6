"""The page with a model that has learnt to answer, in a real browser."""

import pytest
from browser import needs_browser
from page_driver import answered, ask, ready, scripted_server

from foundry.config.sampling import ANSWERING, Sampling

pytestmark = [pytest.mark.browser, needs_browser]


def test_a_full_context_loses_its_oldest_turns_and_the_page_says_so(open_page, model, tokenizer):
    facts = {"chat_trained": True}
    with scripted_server(model, tokenizer, "salt of the river. " * 3, facts=facts) as (url, _, backend):
        page = ready(open_page(url))
        assert page.evaluate("document.querySelector('[name=mode]:checked').value") == "chat", "it opens in its mode"
        assert not page.evaluate("document.getElementById('model-kind').offsetWidth"), "no chip of a base model"
        page.evaluate("document.getElementById('system-box').open = true")
        page.fill("#system", "Speak of salt.")
        for n in range(1, 4):
            ask(page, f"question {n}")
            answered(page, n)
        asked = tokenizer.decode(backend.requests[-1][0].ids)
        assert "Speak of salt." in asked and "question 1" not in asked and "question 3" in asked
        notice = page.text(".forgotten")
        assert "context of 96 tokens is full" in notice
        above = page.evaluate(
            "[...document.querySelectorAll('#view > *')].findIndex((n) => n.classList.contains('forgotten'))"
        )
        assert f"the {above} above" in notice and above in (2, 4)
        page.click("#language")
        assert "96 个词元的上下文已满" in page.text(".forgotten")


def test_answers_begin_with_the_values_of_foundry_chat_and_what_was_changed_counts(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the salt", facts={"chat_trained": True}) as (url, _, backend):
        page = ready(open_page(url))
        begin = "['temperature', 'top_p'].map((n) => Number(document.getElementById(`p-${n}`).value))"
        assert page.evaluate(begin) == [ANSWERING.temperature, ANSWERING.top_p]
        assert page.text("#changed-count") == "All at their defaults"
        ask(page, "question")
        answered(page)
        page.fill("#p-temperature", "1")
        ask(page, "another")
        answered(page, 2)
        page.click("#modes label:nth-of-type(2)")
        assert page.evaluate(begin)[1] == 1, "the interface's own"
        ask(page, "text")
        answered(page)
        used = [request.sampling for request, _ in backend.requests]
        assert used == [ANSWERING, Sampling(temperature=1, top_p=ANSWERING.top_p), Sampling()]
