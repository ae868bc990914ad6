"""A headless browser without the internet: what a page shows, and which hosts it asks."""

import json
import shutil
import subprocess
import urllib.parse

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--window-size=1500,1000",
    "--dump-dom",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def look(url, profile, budget=25_000):
    """The page as the browser has drawn it."""
    return look_and_listen(url, profile, budget)[0]


def look_and_listen(url, profile, budget=25_000):
    """(the page, hosts that it asked for something other than this machine)."""
    profile.mkdir(parents=True, exist_ok=True)
    log = profile / "net-log.json"
    options = [
        *OPTIONS,
        f"--user-data-dir={profile / 'browser'}",
        f"--virtual-time-budget={budget}",
        f"--log-net-log={log}",
    ]
    done = subprocess.run([CHROMIUM, *options, url], capture_output=True, text=True, timeout=150, check=True)
    found = json.loads(log.read_text())
    kind = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [e["params"] for e in found["events"] if e["type"] == kind and "url" in e.get("params", {})]
    # What the browser asks on its own account has no origin.
    hosts = {urllib.parse.urlsplit(p["url"]).hostname for p in asked if p.get("initiator") != "not an origin"}
    return done.stdout, hosts - {"127.0.0.1", None}
