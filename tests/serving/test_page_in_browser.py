"""The page in a real browser, over the real routes: driven by keys and mouse, as a person does."""

import json
import threading
import time
import urllib.request
from dataclasses import replace

import pytest
from browser import needs_browser
from page_driver import answered, ask, ready, scripted_server, shown

from foundry.serving.keys import read_keys

pytestmark = [pytest.mark.browser, needs_browser]
HOSTILE = "<script>document.title=1</script><img src=x onerror=document.title=1> &amp; <b>"


def test_a_continuation_is_the_api_s_own_with_its_probabilities(open_page, url, client, tokenizer):
    page = ready(open_page(url))
    page.fill("#p-seed", "7")
    page.fill("#p-max_tokens", "12")
    ask(page, "the king")
    answered(page)
    own = client.completions.create(model="tiny", prompt="the king", seed=7, max_tokens=12, logprobs=5).choices[0]
    assert shown(page) == "the king" + own.text and len(own.logprobs.tokens) == 12
    assert page.text(".numbers").startswith("12 tokens")
    tokens = page.evaluate(
        "[...document.querySelectorAll('.tok')].map((n) => n.textContent)"
    )  # a character of several tokens is one
    assert "".join(tokens) == own.text and 2 <= len(tokens) <= 12
    first = own.logprobs.top_logprobs[0]
    page.point(".tok", 0)
    rows = page.wait("[...document.querySelectorAll('#card .row code')].map((n) => n.textContent)")
    assert rows[:5] == [t.replace(" ", "␣").replace("\n", "↵") for t in sorted(first, key=first.get, reverse=True)[:5]]
    shares = page.evaluate("[...document.querySelectorAll('#card .row .share')].map((n) => parseFloat(n.textContent))")
    assert sum(shares) == pytest.approx(100, abs=0.6), "with all others"
    assert page.problems == []
    assert page.asked and all(a.startswith((url, "data:")) for a in page.asked), "no other server"


def test_what_a_model_writes_is_text(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, HOSTILE) as (url, _, _):
        page = ready(open_page(url))
        page.click("#modes label")
        ask(page, "<b>x</b>")
        answered(page)
        assert shown(page) == HOSTILE
        assert page.evaluate("document.querySelector('.turn.user .text').textContent") == "<b>x</b>"
        assert page.count(".turn img, .turn script, .turn b") == 0
        page.point(".tok", 3)
        assert page.evaluate("document.title") == "tiny · Foundry" and page.problems == []
        refused = "document.querySelector('.text').innerHTML = '<b>x</b>'"
        with pytest.raises(RuntimeError, match="TrustedHTML"):
            page.evaluate(refused)


def test_an_answer_streams_and_escape_stops_it(open_page, model, tokenizer):
    text = "the king of the river was ancient. " * 6
    with scripted_server(model, tokenizer, text) as (url, _, backend):
        backend.stop_after = 5
        page = ready(open_page(url))
        ask(page, "history")
        page.wait("document.querySelectorAll('.busy .tok').length === 5")
        assert page.evaluate("document.querySelector('.text').getAttribute('aria-busy')") == "true"
        assert page.evaluate("[document.getElementById('send').hidden, document.getElementById('stop').hidden]") == [
            True,
            False,
        ]
        page.press("Escape")
        assert backend.requests[0][1].cancelled.wait(20), "the engine cancels it"
        answered(page)
        assert shown(page) == "history" + tokenizer.decode(tokenizer.encode(text)[:5])
        assert "stopped by you" in page.text(".numbers")


def test_answers_can_be_made_again_looked_through_and_edited(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "one salt") as (url, _, backend):
        page = ready(open_page(url))
        page.click("#modes label")
        page.fill("#p-seed", "3")
        page.fill("#p-max_tokens", "8")  # so that the small context has room for the whole conversation
        ask(page, "first question")
        answered(page)
        backend.text = "two salt"
        page.click("[data-act=again]")
        page.wait("document.querySelector('.at')?.textContent === '2 / 2'")
        answered(page)
        assert shown(page) == "two salt"
        assert [request.seed for request, _ in backend.requests] == [3, 4], "the same seed would give the same text"
        page.click("[data-act=previous]")
        assert shown(page) == "one salt" and page.text(".at") == "1 / 2"

        ask(page, "second question")
        answered(page, 2)
        asked = tokenizer.decode(backend.requests[-1][0].ids)
        assert "one salt" in asked and "two salt" not in asked, "the answer that is shown is the one that counts"

        page.click(".turn.user [data-act=edit]")
        page.evaluate("document.activeElement.select()")
        page.type("another question")
        page.press("Enter", "Control")
        page.wait("document.querySelectorAll('.turn').length === 2")
        answered(page)
        asked = tokenizer.decode(backend.requests[-1][0].ids)
        assert "another question" in asked and "first" not in asked and "second" not in asked

        page.click(".turn.assistant [data-act=edit]")
        page.evaluate("document.activeElement.select()")
        page.type("corrected")
        page.click("#language")
        page.click("#language")  # what is drawn again keeps what was typed
        page.click(".editor .main")
        assert shown(page) == "corrected" and "edited by you" in page.text(".turn.assistant .numbers")


def test_a_conversation_is_copied_saved_and_survives_a_reload(open_page, model, tokenizer, tmp_path):
    facts = {"weights_sha256": "ab" * 32}
    with scripted_server(model, tokenizer, "the 火 city", facts=facts) as (url, _, _):
        page = ready(open_page(url, downloads=tmp_path))
        page.click("#modes label")
        ask(page, "question")
        answered(page)
        page.click(".turn.assistant [data-act=copy]")
        assert page.wait("navigator.clipboard.readText()") == "the 火 city"
        page.click("#save-text")
        page.click("#save-json")
        end = time.monotonic() + 20
        while len(files := sorted(tmp_path.glob("foundry-chat.*[nt]"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)
        saved = json.loads(files[0].read_text())
        assert files[1].read_text() == "You:\nquestion\n\nModel:\nthe 火 city\n"
        (answer,) = saved["messages"][1]["answers"]
        assert answer["weights_sha256"] == "ab" * 32 and answer["request"]["messages"][0]["content"] == "question"
        assert bytes(b for t in answer["tokens"] for b in t["bytes"]).decode() == "the 火 city"
        page.visit(url)
        page.wait("document.querySelectorAll('.turn').length === 2")
        assert shown(page) == "the 火 city" and page.count(".tok") > 2

        page.click("[data-act=curl]")
        page.wait("document.querySelector('[data-act=curl] use').getAttribute('href') === '#i-check'")
        command = page.wait("navigator.clipboard.readText()")
        assert command.startswith(f"curl {url}/v1/chat/completions") and f'"seed": {answer["seed"]}' in command


def test_a_character_of_several_tokens_is_one_span(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "a 火车 is") as (url, _, _):
        assert len(tokenizer.encode("火")) > 1
        page = ready(open_page(url))
        ask(page, "x")
        answered(page)
        tokens = page.evaluate("[...document.querySelectorAll('.tok')].map((n) => n.textContent)")
        assert "火" in tokens and "".join(tokens) == "a 火车 is"
        page.point(".tok", tokens.index("火"))
        assert "3 tokens make up this text" in page.text("#card") and "12.5 %" in page.text("#card")


def test_surprise_is_measured_of_a_given_text_and_shown_as_colour(open_page, model, tokenizer):
    with scripted_server(model, tokenizer) as (url, _, backend):
        page = ready(open_page(url))
        page.fill("#prompt", "the salt of the river")
        page.click("#measure")
        answered(page)
        request = backend.requests[0][0]
        assert request.max_tokens == 0 and request.prompt_logprobs == 5
        assert shown(page) == "the salt of the river" and "3.00 bits per token" in page.text(".numbers")
        assert page.count(".tok .s4") == page.count(".tok"), "three bits have the fifth of eight shades"
        colour = "getComputedStyle(document.querySelector('.tok .s4')).backgroundColor"
        coloured = page.evaluate(colour)
        assert page.evaluate("document.querySelectorAll('#legend i').length") == 8
        assert page.evaluate("getComputedStyle(document.querySelector('#legend .s4')).backgroundColor") == coloured
        page.click("#colours")
        assert page.evaluate(colour) != coloured and not page.evaluate("document.getElementById('legend').offsetWidth")


def test_only_changed_parameters_are_sent_and_a_wrong_one_is_marked(open_page, url, asked):
    page = ready(open_page(url))
    page.fill("#p-temperature", "0.5")
    page.fill("#p-stop", "END\\n")
    page.evaluate("for (const d of document.querySelectorAll('#parameters details')) d.open = true")
    page.fill("#p-bad_words", "salt")
    page.fill("#p-logit_bias", "5 = -2, 7=1.5")
    page.fill("#p-n", "2")
    assert page.text("#changed-count") == "5 changed"
    ask(page, "the king")
    answered(page)
    assert page.text(".at") == "1 / 2" and len(asked) == 2
    sampling = asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.logit_bias) == (0.5, 1.0, ((5, -2.0), (7, 1.5)))
    assert asked[0].stop == ("END\n",) and sampling.bad_words

    page.fill("#p-logit_bias", "five")
    ask(page, "again")
    assert "pairs of a token id and a number" in page.text(".parameter.wrong .why")
    page.click("[data-name=logit_bias] .reset")
    page.fill("#p-top_p", "5")
    ask(page, "again")
    assert page.wait("document.querySelector('.parameter.wrong')?.dataset.name") == "top_p", "refused by the server"
    assert "top_p must be a number in (0, 1]" in page.text(".parameter.wrong .why")
    assert "did not accept" in page.text(".notice.bad") and len(asked) == 2
    page.click("#reset-all")
    assert page.text("#changed-count") == "All at their defaults" and page.count(".parameter.changed") == 0


def test_the_ids_of_a_text_can_be_found(open_page, url, tokenizer):
    page = ready(open_page(url))
    page.evaluate("document.querySelector('[data-group=group_tokens]').open = true")
    page.click("#finder")
    page.type("the river")
    ids = tokenizer.encode("the river")
    found = page.wait(
        f"(n => n.length === {len(ids)} && n.map((p) => p.textContent))([...document.querySelectorAll('.piece')])"
    )
    assert [int(piece.split()[-1]) for piece in found] == ids


def test_both_languages_are_complete_and_remembered(open_page, url):
    every = (
        "[...document.querySelectorAll('[data-t], [data-t-label], [data-t-title], .parameter p, #facts dt, .intro *')]"
        ".map((n) => [n.textContent, n.title, n.getAttribute('aria-label')].filter(Boolean).join('|'))"
    )
    page = ready(open_page(url, languages="zh-CN,zh,en"))
    assert page.evaluate("document.documentElement.lang") == "zh-Hans", "the browser's language"
    chinese = page.evaluate(every)
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "en"
    english = page.evaluate(every)
    assert len(chinese) == len(english) > 80
    assert [text for text in english if cjk(text)] == []
    assert [text for text in chinese if text and not cjk(text) and any(map(str.isalpha, text))] == []
    page.visit(url)
    assert ready(page).evaluate("document.documentElement.lang") == "en", "remembered"
    assert ready(open_page(url, languages="fr,zh;q=0.5")).evaluate("document.documentElement.lang") == "zh-Hans"


def cjk(text):
    return any("一" <= c <= "鿿" for c in text)


CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (...layers) => {
    for (const colour of layers) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => c.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort(); return (y + .05) / (x + .05); };
  const page = getComputedStyle(document.body).backgroundColor;
  const of = (node) => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) layers.unshift(getComputedStyle(n).backgroundColor);
    return ratio(rgb(page, ...layers), rgb(page, ...layers, getComputedStyle(node).color));
  };
  const shades = [...document.querySelectorAll('#legend i')];
  const kinds = '.model, .chip, .soft, .parameter p, .parameter label, .quiet:enabled, .main, dt, dd, h1';
  const texts = [...document.querySelectorAll(kinds)]
    .filter((n) => n.offsetWidth && n.textContent);
  return [shades.map(of), texts.map((n) => [of(n), n.className + n.tagName])];
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_in_both_colour_schemes(open_page, url, dark):
    page = ready(open_page(url, dark=dark))
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark, "as the system has it"
    shades, texts = page.evaluate(CONTRAST)
    assert len(shades) == 8 and min(shades) >= 4.5, shades
    assert len(texts) > 30 and [t for t in texts if t[0] < 4.5] == []
    assert shades == sorted(shades, reverse=True), "more surprise is further from the background"
    for _ in range(2 if dark else 3):
        page.click("#theme")  # system, light, dark
        page.evaluate("0")
    page.click("#theme") if not dark else None
    chosen = page.evaluate("[document.documentElement.dataset.theme, localStorage['foundry.theme']]")
    page.visit(url)
    assert ready(page).evaluate("[document.documentElement.dataset.theme, localStorage['foundry.theme']]") == chosen


def test_a_narrow_screen_has_everything_without_scrolling_sideways(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river " * 30) as (url, _, _):
        page = ready(open_page(url, width=360, height=640))
        ask(page, "history " * 20)
        answered(page)
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(fits)
        outside = """[...document.querySelectorAll('body *')]
            .filter((n) => n.checkVisibility() && !n.closest('svg, .sr, [role=tabpanel]'))
            .map((n) => [n.getBoundingClientRect(), n.outerHTML.slice(0, 80)])
            .filter(([box]) => box.width && (box.right > innerWidth + 1 || box.left < -1))"""
        assert page.evaluate(outside) == []
        assert not page.evaluate("document.getElementById('panel').offsetWidth")
        page.click("#panel-toggle")
        assert page.evaluate("document.getElementById('panel').offsetWidth") > 300 and page.evaluate(fits)
        assert page.evaluate("document.activeElement.id") == "panel-close"
        page.press("Escape")
        assert not page.evaluate("document.getElementById('panel').offsetWidth")
        assert page.evaluate("document.activeElement.id") == "panel-toggle"
        page.click("#modes label")
        assert page.evaluate(fits) and page.evaluate(outside) == []


def test_everything_is_reached_with_the_keyboard_and_the_focus_is_seen(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river. Salt is") as (url, _, _):
        page = ready(open_page(url))
        page.evaluate("document.getElementById('prompt').focus()")
        page.type("history")
        page.press("Enter", "Control")
        answered(page)
        reached, outlines = [], []
        for _ in range(60):
            page.press("Tab")
            page.evaluate("0")
            what, outline = page.evaluate(
                "(n => [n.id || n.dataset.act || n.className || n.tagName, getComputedStyle(n.tagName === 'INPUT' &&"
                " n.type === 'radio' ? n.parentElement : n).outlineStyle])(document.activeElement)"
            )
            if what in reached or what == "BODY":
                break
            reached.append(what)
            outlines.append(outline)
        order = ["measure", "send", "colours", "new", "text", "again", "copy", "tab-parameters", "p-temperature", "p-n"]
        places = [reached.index(what) for what in order]
        assert places == sorted(places), reached
        assert "none" not in outlines, list(zip(reached, outlines, strict=True))

        page.evaluate("document.querySelector('.text').focus()")
        page.press("ArrowRight")
        page.press("ArrowRight")
        page.wait("document.querySelectorAll('.tok')[1].classList.contains('at')")
        assert "12.5 %" in page.text("#card")
        page.press("Escape")
        assert page.evaluate("document.getElementById('card').hidden")


def test_a_screen_reader_hears_the_answer_by_sentences(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river. Salt is") as (url, _, _):
        page = ready(open_page(url))
        assert page.evaluate("document.getElementById('live').getAttribute('aria-live')") == "polite"
        ask(page, "x")
        answered(page)
        said = page.evaluate("[...document.querySelectorAll('#live p')].map((n) => n.textContent)")
        assert said == ["the river.", " Salt is", "The answer is complete."]


def test_errors_are_said_in_plain_words(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river is") as (url, server, backend):
        page = ready(open_page(url))
        backend.full = True
        ask(page, "one")
        assert "too much to do" in page.text(".notice.bad") and "7 requests are waiting" in page.text(
            ".notice.bad .detail"
        )
        backend.full = False
        backend.failure, backend.stop_after = "the model's logits are NaN", 3
        page.click("[data-act=again]")
        page.wait("document.querySelectorAll('.tok').length === 3")
        backend.go_on.set()
        page.wait("document.querySelector('.notice.bad')?.textContent.includes('ended with an error')")
        kept = "one" + tokenizer.decode(tokenizer.encode(backend.text)[:3])
        assert shown(page).startswith(kept), "what came before"
        backend.failure = None
        ask(page, "word " * 200)
        assert "did not accept" in page.text(".notice.bad") and "96 tokens" in page.text(".notice.bad .detail")
        version, server.version = server.version, None
        page.click("#send")
        page.wait("document.querySelector('.notice.bad')?.textContent.includes('no requests at the moment')")
        server.version = version
    ask(page, "gone")
    page.wait("document.querySelector('.notice.bad')?.textContent.includes('cannot be reached')")


def test_a_page_that_is_opened_while_the_server_loads_waits_for_the_model(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river") as (url, server, _):
        version, server.version = server.version, None
        page = open_page(url)
        assert "is loading" in page.text("#notices")
        server.version = version
        ready(page)
        assert page.text("#model-name") == "tiny" and page.text("#notices") == ""


def test_a_key_is_asked_for_and_kept_for_the_tab_only(open_page, model, tokenizer):
    keys = read_keys(None, {"FOUNDRY_API_KEYS": "alice=sk-right-key"})
    with scripted_server(model, tokenizer, "the river", keys=keys) as (url, _, _):
        page = open_page(url)
        page.fill("#key", "sk-wrong-key")
        page.press("Enter")
        page.wait("document.getElementById('notices').innerText.includes('did not accept the API key')")
        page.fill("#key", "sk-right-key")
        page.press("Enter")
        ready(page)
        assert not page.evaluate("document.getElementById('key-form').offsetWidth")
        ask(page, "x")
        answered(page)
        assert shown(page) == "xthe river"
        page.visit(url)
        page.wait("document.querySelector('.tok')")
        assert "sk-right-key" not in page.evaluate("JSON.stringify(localStorage)")
        assert "sk-right-key" in page.evaluate("JSON.stringify(sessionStorage)")


def test_another_model_is_noticed(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river") as (url, server, _):
        page = ready(open_page(url))
        ask(page, "x")
        answered(page)
        facts = server.version.facts.model_copy(update={"weights_sha256": "b" * 64, "version": "4"})
        server.version = replace(server.version, facts=facts)
        page.click("[data-act=again]")
        page.wait("document.querySelector('[data-name=swap]')")
        assert f"{'a' * 12} were replaced by {'b' * 12}" in page.text("[data-name=swap]")
        page.wait("document.getElementById('model-name').textContent.includes('v4')")
        page.click("[data-act=previous]")
        assert f"by the former weights {'a' * 12}" in page.text(".numbers")


def test_the_model_s_lineage_and_numbers_are_there(open_page, model, tokenizer):
    from foundry.utils.bootstrap import Interval

    facts = {"bits_per_byte": Interval(value=1.25, low=1.2, high=1.3), "license": "MIT", "version": "3"}
    with scripted_server(model, tokenizer, facts=facts) as (url, _, _):
        page = ready(open_page(url))
        assert "base model" in page.text(".chip")
        page.click("#tab-facts")
        text = page.text("#facts")
        for part in ("1.250", "1.2 to 1.3", "MIT", "a" * 64, "f" * 16, tokenizer.sha256, "96 tokens", "base model"):
            assert part in text, part


def test_an_answer_is_rated_if_the_server_records(open_page, model, tokenizer):
    with scripted_server(model, tokenizer, "the river", record="there") as (url, server, _):
        page = ready(open_page(url))
        page.fill("#p-n", "2")
        ask(page, "x")
        answered(page)
        page.click("[data-act=next]")
        page.click("[data-act=rate_down]")
        page.wait("document.querySelector('[data-act=rate_down]').getAttribute('aria-pressed') === 'true'")
        page.click("[data-act=rate_down]")
        page.wait("document.querySelector('[data-act=rate_down]').getAttribute('aria-pressed') === 'false'")
        (exchange,) = server.observer.exchanges
        assert server.ratings == [(exchange.id, 1, rating, None, None) for rating in (-1, 0)]
    with scripted_server(model, tokenizer, "the river") as (url, server, _):
        page = ready(open_page(url))
        ask(page, "x")
        answered(page)
        assert page.count("[data-act=rate_up]") == 0


def test_the_page_says_what_its_address_may_do(url):
    with urllib.request.urlopen(url) as response:
        policy = response.headers["Content-Security-Policy"]
    assert "connect-src 'self'" in policy and "script-src 'sha256-" in policy
    assert threading.active_count() < 50
