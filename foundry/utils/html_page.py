"""HTML reports: each is one self-contained page in the project's style, with nothing to load and no script."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render_page(title: str, package: str, template: str, **values: Any) -> str:
    """Renders the body of a page and puts it below the common head.

    The template may use the macros `n` (a number with separators), `mb` (bytes as MB) and `share` (a part of a
    total, in percent).

    Args:
        package: that contains the template, for example `foundry.evaluation`.
        template: name of the Jinja file in the package.
        values: names of the template. Every value is escaped; a name that is not given is an error.
    """
    import jinja2

    env = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    text = _read(__package__, "html_page_head.html") + _read(package, template) + "</body></html>\n"
    return env.from_string(text).render(page_title=title, **values)


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
