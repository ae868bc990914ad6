"""Sources of the manifest of raw files, for tests that do not download."""

from foundry.utils.raw_manifest import Manifest, RawFile, RawSource, write_manifest


def raw_source(*files, **changes):
    """A source with these files; for a name, one whose bytes nobody verifies."""
    described = {"name": "s", "url": "file:corpus/s", "license": "unknown", "attribution": "", "lang": "und"}
    read_as = {"format": "auto", "encoding": None, "text": "{text}", "cut": "", "html": "auto", "member": None}
    listed = tuple(f if isinstance(f, RawFile) else RawFile(path=f, sha256="4" * 64, bytes=5) for f in files)
    return RawSource(**{**described, **read_as, **changes}, files=listed)


def write_raw_manifest(raw, *sources):
    """Writes `manifest.json` into the folder `raw`, which is made if it is missing."""
    raw.mkdir(parents=True, exist_ok=True)
    write_manifest(raw, Manifest(sources=sources))
