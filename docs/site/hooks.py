"""What MkDocs does not do by itself: a site of the repository's own Markdown files, in two languages.

Every tracked Markdown file is a page at its path in the repository, so that the links that a code host follows work on
the site, too. Images that pages link become files of the site, other linked files become pages that show their text,
and a link to a folder leads to its README. A page is Chinese if it is below `docs/zh/` or ends in `.zh.md`; it is shown
with the theme, the navigation and the search words of its language, and with a link to its counterpart.
"""

from __future__ import annotations

import functools
import importlib.util
import posixpath
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"en": "English", "zh": "中文"}
NOT_PAGES = (".*", "tests/*")  # templates of a code host, texts that tests read
ASSETS = (".png", ".svg", ".jpg", ".html", ".pdf", ".bib", ".csv")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
MERMAID = "assets/mermaid.js"


def language(path: str) -> str:
    """`zh` or `en`, of a page's path in the repository."""
    return "zh" if path.startswith("docs/zh/") or path.endswith(".zh.md") else "en"


def counterpart(path: str) -> str:
    """The path of the same page in the other language, whether it exists or not."""
    if path.startswith("docs/"):
        return re.sub("^docs/(en|zh)/", lambda m: f"docs/{'zh' if m[1] == 'en' else 'en'}/", path)
    return path.removesuffix(".zh.md") + ".md" if path.endswith(".zh.md") else path.removesuffix(".md") + ".zh.md"


@functools.cache
def pages() -> tuple[str, ...]:
    """Every Markdown file that git has or would add, by its path in the repository."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    found = {n for n in names if n and (ROOT / n).is_file() and not any(fnmatch(n, p) for p in NOT_PAGES)}
    return tuple(sorted(found))


def target(page: str, link: str) -> str | None:
    """The path in the repository that a relative link of a page leads to; None for an address or a missing file."""
    if re.match(r"[a-z]+:|/", link):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def on_files(files: Files, config: Any) -> Files:
    """The pages and what they link, in place of the files below docs_dir."""
    site = Files([f for f in files if f.src_dir != config.docs_dir])  # those of the theme
    for page in pages():
        site.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
        for _, link, _ in LINK.findall(BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))):
            path = target(page, link)
            if path is None or path.endswith(".md") or (ROOT / path).is_dir():
                continue
            uri = path if path.endswith(ASSETS) else f"{path}.md"
            if site.get_file_from_path(uri) is None:
                shown = {"abs_src_path": str(ROOT / path)} if uri == path else {"content": source_page(path)}
                site.append(File.generated(config, uri, **shown))
    package = importlib.util.find_spec("mermaidx")
    if package is None or package.origin is None:
        raise PluginError("the package mermaidx, which contains the script of the diagrams, is missing: make docs")
    site.append(File.generated(config, MERMAID, abs_src_path=str(Path(package.origin).parent / MERMAID)))
    for style in (s for s in config.extra_css if (ROOT / s).is_file()):  # plugins add theirs themselves
        site.append(File.generated(config, style, abs_src_path=str(ROOT / style)))
    config.nav = [{name: chapters(config, short)} for short, name in LANGUAGES.items()]
    known = {p for tree in config.nav for part in tree.values() for chapter in part for p in flat(chapter)}
    if missing := [p for p in pages() if p not in known]:
        raise PluginError(f"extra.chapters of mkdocs.yml does not name these pages: {', '.join(missing)}")
    config.nav.append({"": [f.src_uri for f in site if f.src_uri.endswith(".md") and f.src_uri not in known]})
    return site


def flat(entry: Any) -> list[str]:
    """The paths in an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [p for x in (entry.values() if isinstance(entry, dict) else entry) for p in flat(x)]


def source_page(path: str) -> str:
    """A page that shows a file of code."""
    kind = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".sh": "bash"}.get(
        Path(path).suffix, ""
    )
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{kind}\n{text}\n````\n"


def chapters(config: Any, short: str) -> list[Any]:
    """The navigation of a language: `extra.chapters` with the pages that exist."""
    own = [p for p in pages() if language(p) == short]
    out, used = [], set()
    for chapter in config.extra["chapters"]:
        found = []
        for name in chapter["pages"]:
            ending = ".zh.md" if short == "zh" else ".md"
            pattern = f"{name}{ending}" if "/" in name or name.isupper() else f"docs/{short}/{name}.md"
            found += [p for p in own if fnmatch(p, pattern) and p not in used and not used.add(p)]
        if found:
            out.append({chapter[short]: found})
    return out


def on_nav(nav: Any, config: Any, files: Files) -> Any:
    """A last page of a language is not followed by the first one of the other."""
    for page in nav.pages:
        for side in ("next_page", "previous_page"):
            other = getattr(page, side)
            if other is not None and language(other.file.src_uri) != language(page.file.src_uri):
                setattr(page, side, None)
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to folders and to files of code lead to the pages that show them."""
    here = page.file.src_uri

    def rewritten(match: re.Match) -> str:
        path = target(here, match[2])
        if path is None or path.endswith((".md", *ASSETS)):
            return match[0]
        if (ROOT / path).is_dir():
            return f"{match[1]}{match[2].rstrip('/')}/README.md{match[3]}"
        return f"{match[1]}{match[2]}.md{match[3]}"

    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
    if here.startswith("study/"):  # a quoted fragment of code is no reference to a name of the Python interface
        parts = [part if i % 2 else part.replace("][", "]\\[") for i, part in enumerate(parts)]
    return "".join(part if i % 2 else LINK.sub(rewritten, part) for i, part in enumerate(parts))


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """The language of a page: theme, navigation, link to the counterpart."""
    here = page.file.src_uri
    short = language(here)
    config.theme["language"] = short
    trees = {item.title: item.children for item in nav.items}
    by_path = {p.file.src_uri: p for p in nav.pages}
    homes = {code: by_path["README.md" if code == "en" else "README.zh.md"] for code in LANGUAGES}
    context["nav"] = SimpleNamespace(items=trees[LANGUAGES[short]], pages=nav.pages, homepage=homes[short])
    other = by_path.get(counterpart(here))
    config.extra["alternate"] = [
        {"name": name, "link": (page if code == short else other or homes[code]).url, "lang": code}
        for code, name in LANGUAGES.items()
    ]
    return context


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Pages with a diagram load Mermaid from the site itself; the theme would ask another host for it."""
    if 'class="mermaid"' not in output:
        return output
    up = "../" * page.file.dest_uri.count("/")
    return output.replace("</head>", f'<script src="{up}{MERMAID}"></script></head>', 1)
