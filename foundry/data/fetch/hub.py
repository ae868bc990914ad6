"""Files of a data set on a hub, by the hub's own client. HF_ENDPOINT and HF_TOKEN are honoured."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundry.config import DataError, UnreachableError
from foundry.data.fetch.lockfile import Pin
from foundry.data.fetch.sources import Hub
from foundry.data.fetch.store import Fetched, Transfers, check_names
from foundry.utils.files import disk_errors, sha256_file, write_json
from foundry.utils.network import causes, is_transient


def fetch_hub(
    address: Hub,
    store: Path,
    pin_of: Callable[[str], Pin | None],
    check_listing: Callable[[list[str]], None],
    transfers: Transfers,
) -> list[Fetched]:
    """The files of a data set at a revision.

    A file of known hash that is in the store, and the list of files of a commit, are requested only once.

    Args:
        pin_of: what an address is known to hash to.
        check_listing: raises if the addresses that a pattern matches are not those of the last time.

    Raises:
        UnreachableError: if the hub does not answer.
        DataError: if the data set, revision or file does not exist, or is not what it was.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The base class of the errors of its HTTP client, which is another one from version to version.
    http_error = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")

    folder = store / "hub" / address.repo.replace("/", "--") / re.sub(r"[^\w.-]", "_", address.revision)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    where = address.address(address.path)
    at = {"repo_id": address.repo, "repo_type": "dataset", "revision": address.revision}
    try:
        files = [address.path]
        if address.filename is None:
            files = _matching(address, api, at, folder / "files.json")
            check_names(files, where)
            check_listing([address.address(f) for f in files])

        def one(file: str) -> Fetched:
            name = address.address(file)
            return Fetched(_fetch_file(api, at, file, folder, name, pin_of(name), transfers), file, name)

        return transfers.each(one, files)
    except AttributeError as e:
        # Where a request finds no connection, the hub's client closes the session that all threads share; one that is
        # taking it at this moment gets None instead.
        if e.obj is not None or e.name != "request":
            raise
        raise UnreachableError(
            f"{where} is not in the store and the hub cannot be reached; check the network or HF_ENDPOINT"
        ) from None
    except (http_error, OSError) as e:
        if any(isinstance(c, OfflineModeIsEnabled) for c in causes(e)):
            raise DataError(
                f"{where} is not in the store, and HF_HUB_OFFLINE forbids requests to the hub; unset it for this "
                "download"
            ) from None
        if is_transient(e):
            raise UnreachableError(
                f"{where} is not in the store and the hub cannot be reached ({e.__cause__ or e}); "
                "check the network or HF_ENDPOINT"
            ) from None
        first = str(e).strip().split("\n")[0]
        raise DataError(
            f"{where} cannot be fetched: {type(e).__name__}: {first}. Check owner, name, revision, path and HF_ENDPOINT"
        ) from None


def _matching(address: Hub, api: Any, at: dict[str, str], known: Path) -> list[str]:
    commit = re.fullmatch(r"[0-9a-f]{40}", address.revision)
    names = json.loads(known.read_text()) if commit and known.exists() else sorted(api.list_repo_files(**at))
    write_json(known, names)
    files = fnmatch.filter(names, address.path)
    if not files:
        where = address.address(address.path)
        raise DataError(f"{where} matches none of the data set's {len(names)} files: {', '.join(names[:8])}")
    return files


def _fetch_file(
    api: Any, at: dict[str, str], file: str, folder: Path, name: str, pin: Pin | None, transfers: Transfers
) -> Path:
    path = folder / file
    if pin and path.is_file():
        if sha256_file(path) == pin.sha256:
            return path
        path.unlink()  # damaged or older: the client trusts its own records, not the bytes
    with disk_errors(folder):
        path = Path(api.hf_hub_download(filename=file, local_dir=folder, tqdm_class=_bar(transfers), **at))
    if pin:
        pin.check(name, sha256_file(path), path.stat().st_size)
    return path


def _bar(transfers: Transfers) -> type:
    """The client shows one bar per file; this one shows nothing and advances the common bar."""
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            transfers.expect((options.get("total") or 0) - options.get("initial", 0))

        def update(self, n: float | None = 1) -> None:
            transfers.advance(int(n or 0))

    return Silent
