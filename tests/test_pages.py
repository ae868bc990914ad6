"""Pages that are files need no internet: the reports, and what `dvc plots` draws."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import look_and_listen, needs_browser
from toy import ROOT, git

pytestmark = [pytest.mark.browser, needs_browser]
GRAPH = """
stages:
  a:
    cmd: "true"
    plots:
      - curve.csv: {cache: false, x: step, y: loss, title: training loss}
"""


def test_the_reports_ask_no_host(tmp_path):
    pages = sorted((ROOT / "reports").glob("*.html"))
    assert len(pages) >= 3
    for page in pages:
        shown, hosts = look_and_listen(page.as_uri(), tmp_path)
        assert "</table>" in shown and hosts == set(), (page, hosts)


def test_dvc_plots_draws_both_revisions_and_asks_no_host(tmp_path):
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    for name in ("config", "plots.html"):
        (project / ".dvc" / name).write_bytes((ROOT / ".dvc" / name).read_bytes())
    (project / "dvc.yaml").write_text(GRAPH)
    git(project, "init", "-q")
    for first in (3.0, 2.5):
        (project / "curve.csv").write_text("step,loss\n" + "".join(f"{10 * i},{first / (i + 1)}\n" for i in range(5)))
        git(project, "add", "-A")
        git(project, "commit", "-qm", f"loss {first}")
    command = [sys.executable, "-m", "dvc", "plots", "diff", "HEAD~1", "HEAD", "--out", "drawn"]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    page = Path(project / "drawn/index.html")
    assert "src=" not in page.read_text()
    shown, hosts = look_and_listen(page.as_uri(), tmp_path)
    assert hosts == set() and "training loss" in shown
    lines = dict(re.findall(r'<polyline points="([^"]+)"[^>]*data-rev="([^"]+)"', shown))
    assert sorted(lines.values()) == ["HEAD", "HEAD~1"] and all(p.count(",") == 5 for p in lines), shown
