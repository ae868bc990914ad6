"""The site of the documentation: it builds without a dead link, in two languages, and asks no other host."""

import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from browser import needs_browser
from pipeline import environment
from toy import ROOT, git

# The theme puts a drawing into a node of its own, in place of the text.
DRAWN = "[...document.querySelectorAll('.mermaid')].every(d => d.tagName == 'DIV' && d.clientHeight > 50)"
CHINESE = "docs/zh/training/index.html"


def build(project, into):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(into)]
    env = environment(NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    code, text = build(ROOT, folder)
    assert code == 0, text
    return folder


def address(page):
    """Where the site has a Markdown file of the repository."""
    folder = page.removesuffix(".md").removesuffix("README").removesuffix("index").rstrip("/")
    return f"{folder}/index.html".lstrip("/")


def test_every_markdown_file_is_a_page_and_every_page_has_its_language(site):
    tracked = git(ROOT, "ls-files", "*.md").splitlines()
    pages = [p for p in tracked if not p.startswith((".", "tests/"))]
    assert len(pages) > 35
    for page in pages:
        shown = (site / address(page)).read_text(encoding="utf-8")
        zh = page.startswith("docs/zh/") or page.endswith(".zh.md")
        assert f'<html lang="{"zh" if zh else "en"}"' in shown, page
        other = re.search(f'<a href="([^"]*)" hreflang="{"en" if zh else "zh"}" class="md-select__link"', shown)
        assert other, page
        assert ((site / address(page)).parent / other[1] / "index.html").exists(), (page, other[1])
        assert ('aria-label="页眉"' in shown) == zh, page  # the theme's own words


def test_a_page_leads_to_its_counterpart(site):
    shown = (site / CHINESE).read_text(encoding="utf-8")
    assert '<a href="../../en/training/" hreflang="en" class="md-select__link"' in shown


def test_every_arrow_between_the_rooms_is_an_import():
    drawn = re.search(r"flowchart BT\n(.*?)```", (ROOT / "docs/en/architecture.md").read_text(encoding="utf-8"), re.S)[
        1
    ]
    arrows = [
        (a, b)
        for line in re.sub(r"\[[^]]*\]", "", drawn).splitlines()
        for left, right in pairwise(line.split("-->"))
        for a in left.split("&")
        for b in right.split("&")
    ]
    assert len(arrows) > 20
    for room, importer in ((a.strip(), b.strip()) for a, b in arrows):
        folder = ROOT / importer if importer in ("stages", "flows") else ROOT / "foundry" / importer
        code = "".join(p.read_text(encoding="utf-8") for p in folder.rglob("*.py"))
        assert re.search(rf"\b(?:from|import) foundry\.{room}\b", code), f"{importer} does not import {room}"


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    loads = re.compile(r"<(?:script|img|iframe|link|source|video)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+")
    found = {str(p): m[0] for p in pages for m in loads.finditer(p.read_text(encoding="utf-8"))}
    assert len(pages) > 40 and not found


def test_the_search_index_has_words_of_chinese(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    assert "zh" in index["config"]["lang"]
    texts = " ".join(d["text"] for d in index["docs"] if d["location"].startswith("docs/zh/training/"))
    assert {"学习率", "检查点"} <= set(re.split(r"[\s\u200b，。：、（）]", texts))


def test_a_dead_link_a_dead_anchor_and_a_forgotten_page_fail_the_build(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "docs/site", project / "docs/site")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (project / "mkdocs.yml").write_text(
        re.sub(r"^  - search:\n(    .*\n)+", "", settings, flags=re.M), encoding="utf-8"
    )
    (project / "README.zh.md").write_text("# 题\n")
    git(project.parent, "init", "-q", str(project))
    texts = {
        "# One\n\n[a](docs/en/nowhere.md)\n": "docs/en/nowhere.md",
        "# Two\n\n[a](#nowhere)\n": "#nowhere",
    }
    for text, named in texts.items():
        (project / "README.md").write_text(text)
        code, said = build(project, tmp_path / "site")
        assert code != 0 and named in said, said
    (project / "NEW.md").write_text("# New\n")
    code, said = build(project, tmp_path / "site")
    assert code != 0 and "does not name these pages: NEW.md" in said, said
    (project / "NEW.md").unlink()
    (project / "README.md").write_text("# Fine\n")
    assert build(project, tmp_path / "site")[0] == 0


@pytest.mark.browser
@needs_browser
def test_a_browser_draws_the_diagrams_and_searches_both_languages_without_another_host(site, tmp_path):
    from devtools import browser

    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}"
    try:
        with browser(tmp_path / "browser") as open_page:
            for language, word in (("zh", "学习率"), ("en", "learning rate")):
                page = open_page(f"{home}/docs/{language}/architecture/")
                page.wait("document.querySelectorAll('.mermaid').length >= 5")
                page.wait(DRAWN)
                page.fill(".md-search__input", word)
                page.wait(f"document.querySelector('.md-search-result__item a[href*=\"docs/{language}/\"]')")
                assert not [p for p in page.problems if "404" not in p]  # the theme looks for a map of the site
                assert all(url.startswith((home, "data:", "blob:")) for url in page.asked), page.asked
    finally:
        server.shutdown()
        server.server_close()
