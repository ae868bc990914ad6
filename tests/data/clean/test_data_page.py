"""`reports/data.html` in a headless browser: what a person sees is what was counted."""

import json
import re
import shutil
import subprocess

import pytest
from cleaning import MINE, REPORTS, run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page_text(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.S)))


def test_page_shows_every_count_and_loads_nothing(corpus):
    report = run(MINE)
    html = (REPORTS / "data.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script""", html)
    text = page_text(html)
    assert f"{report['records']['in']:,} records in" in text and f"{report['documents']['kept']:,} kept" in text
    for reason, n in report["documents"]["dropped"].items():
        assert (f"{reason} {n:,} " in text) == bool(n)
    assert "mine/b.jsonl, record 133, byte" in text and "broken_json" in text
    assert "repeats " in text and "(threshold 0.7)" in text


def test_text_of_the_corpus_cannot_become_markup(project, story, write_jsonl):
    evil = "<img src=x onerror=alert(1)>{{ 7 * 7 }}"
    write_jsonl(project / "corpus/a.jsonl", [story(i) for i in range(100)] + [evil])
    run(MINE, strip_html=False)
    html = (REPORTS / "data.html").read_text(encoding="utf-8")
    assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;{{ 7 * 7 }}" in html


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_browser_draws_the_page(corpus, tmp_path):
    report = run(MINE)
    page = (REPORTS / "data.html").absolute().as_uri()
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,2000",
    ]
    shot = tmp_path / "page.png"
    dom = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True
    )
    text = page_text(dom.stdout)
    assert f"{report['documents']['kept']:,} kept" in text and "Account of each file" in text
    subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", page], capture_output=True, timeout=120, check=True)
    import matplotlib.image

    image = matplotlib.image.imread(shot)[:, :, :3]
    colours = {tuple((255 * c).round().astype(int)) for c in image[::3, ::3].reshape(-1, 3)}
    assert len(colours) > 20  # drawn, with text, bars and tables
    assert json.loads((REPORTS / "clean.json").read_text()) == report
