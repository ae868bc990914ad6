"""The page at `/` as a file: complete in both languages, self-contained, and under a strict policy."""

import base64
import hashlib
import json
import re

import pytest

from foundry.config.sampling import PARAMETERS
from foundry.config.serving import Serving
from foundry.serving.page import SCRIPTS, _read, build_page

WORDS = json.loads(_read("words.json"))


@pytest.fixture(scope="module")
def page():
    return build_page(Serving())


def data_of(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html.decode(), re.S)[1]
    )


def test_every_text_is_in_both_languages_with_the_same_gaps():
    assert len(WORDS) > 100
    for key, text in WORDS.items():
        assert set(text) == {"en", "zh"} and all(text.values()), key
        assert sorted(re.findall(r"\{\w+\}", text["en"])) == sorted(re.findall(r"\{\w+\}", text["zh"])), key
        assert re.search(r"[一-鿿]", text["zh"]) or not re.search(r"[A-Za-z]", re.sub(r"\{\w+\}", "", text["en"])), key
        assert not re.search(r"[一-鿿]", text["en"]), key


def test_every_text_that_the_page_asks_for_is_there_and_every_text_is_asked_for():
    source = _read("index.html") + "".join(map(_read, SCRIPTS))
    asked = set(re.findall(r"\bt\(\"(\w+)\"", source)) | set(re.findall(r'data-t(?:-\w+)?="(\w+)"', source))
    assert len(asked) > 50 and asked <= set(WORDS)
    beginnings = tuple(set(re.findall(r"`(\w+_)\$\{", source)))  # of keys that are put together
    for key in WORDS:
        whole = re.sub(r"_(long|chat|completion)$", "", key)
        assert f'"{key}"' in source or f'"{whole}"' in source or key.startswith(beginnings), key


def test_every_parameter_of_the_engine_is_on_the_page_with_its_explanation_in_both_languages(page):
    listed = {p["name"]: p for p in data_of(page)["parameters"]}
    assert set(listed) == {p.name for p in PARAMETERS}
    assert all(p["text"] and re.search(r"[一-鿿]", p["chinese"]) for p in listed.values())
    groups = re.search(r"const GROUPS = \[.*?\n\];", _read("4-parameters.js"), re.S)[0]
    assert [name for name in listed if f'"{name}"' not in groups] == []


def test_the_limits_of_the_server_are_those_of_the_page():
    data = data_of(build_page(Serving(max_new_tokens=50, max_n=3, max_logprobs=2, record="there")))
    assert data["limits"] == {"max_new_tokens": 50, "default_tokens": 50, "max_n": 3, "alternatives": 2}
    assert data["recording"] and not data_of(build_page(Serving()))["recording"]


def test_the_page_has_no_external_address(page):
    text = page.html.decode()
    assert not re.findall(r"""(?:src|href|action)=["']?(?!#|data:)[^"'>\s]""", text)
    assert "url(" not in _read("page.css") and "@import" not in _read("page.css")
    addresses = set(re.findall(r"https?://[^\s'\"<>`]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "names of SVG only"


def test_the_policy_allows_exactly_the_script_and_the_style_of_the_page(page):
    text, policy = page.html.decode(), page.headers["Content-Security-Policy"]
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy.split("; ")
    assert "unsafe" not in policy and "*" not in policy
    for rule in (
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ):
        assert rule in policy.split("; ")


def test_the_page_makes_no_markup_from_text():
    source = "".join(map(_read, SCRIPTS))
    ways = r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|ContextualFragment|srcdoc|\beval\b|Function\("
    assert not re.findall(ways, source)


def test_data_cannot_end_its_script_element(page):
    inside = re.search(r'id="data">(.*?)</script>', page.html.decode(), re.S)[1]
    assert "<" not in inside and page.html.decode().count("</script>") == 2


def test_no_file_of_the_page_has_500_lines():
    assert all(len(_read(name).splitlines()) < 500 for name in ("index.html", "page.css", *SCRIPTS))
