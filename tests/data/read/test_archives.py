"""Archives: every wanted member comes once; links, encrypted, doubled and nested members and escapes are refused."""

import bz2
import gzip
import io
import json
import logging
import lzma
import stat
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import raw_source
from reading import put, zst

from foundry.config import DataError
from foundry.data.read.archives import wanted
from foundry.data.read.records import Document
from foundry.data.read.units import Limits, plan_units, read_unit

LIMITS = Limits(1 << 20, 1000, 1 << 30)


def read(path, member=None, format="auto", text="{text}", limits=LIMITS, unit_bytes=1 << 40):
    sources = [raw_source(path.name, format=format, text=text, member=member)]
    units = plan_units(path.parent, sources, unit_bytes, limits)
    return [i for u in units for i in read_unit(path.parent, sources, u, limits)]


def outcomes(items):
    return [(i.file.partition("!")[2], i.text if isinstance(i, Document) else i.reason) for i in items]


def parquet(texts):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


def tar(members, format=tarfile.PAX_FORMAT):
    """The bytes of a tar of (name or TarInfo, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


KINDS = {
    "a.tar": tar,
    "a.tgz": lambda m: gzip.compress(tar(m)),
    "a.tar.gz": lambda m: gzip.compress(tar(m, tarfile.GNU_FORMAT)),
    "a.tar.bz2": lambda m: bz2.compress(tar(m)),
    "a.tar.xz": lambda m: lzma.compress(tar(m)),
    "a.tar.zst": lambda m: zst(tar(m)),
    "a.zip": zipped,
    "a.whl": zipped,
}
LINES = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3))
MEMBERS = [
    ("p/d/a.txt", b"one\n<|endoftext|>\ntwo"),
    ("p/d/b.jsonl.gz", gzip.compress(LINES.encode())),
    ("p/d/c.json", b'[{"text": "three"}, 4]'),
    ("p/d/d.csv.xz", lzma.compress(b"text\nfour\n")),
    ("p/d/e.parquet", parquet(["five"])),
    ("p/d/f.html", b"<html><main><p>six is here.</p></main></html>"),
    ("p/d/" + "long" * 40 + "é.md", b"seven"),
    ("p/code.py", b"x = 1"),
    ("p/README.md", b"about"),
    ("p/LICENSE.txt", b"law"),
    ("p/package.json", b"{}"),
    ("p/.hidden/x.txt", b"no"),
    ("p-1.dist-info/top_level.txt", b"p"),
    ("__MACOSX/a.txt", b"no"),
]
EXPECTED = [
    ("p/d/a.txt", "one"),
    ("p/d/a.txt", "two"),
    *[("p/d/b.jsonl.gz", f"line {i}") for i in range(3)],
    ("p/d/c.json", "three"),
    ("p/d/c.json", "not_an_object"),
    ("p/d/d.csv.xz", "four"),
    ("p/d/e.parquet", "five"),
    ("p/d/f.html", "six is here."),
    ("p/d/" + "long" * 40 + "é.md", "seven"),
]


@pytest.mark.parametrize("name", KINDS)
def test_every_text_member_is_read_in_place_and_numbered_through(tmp_path, name):
    path = put(tmp_path, name, KINDS[name](MEMBERS))
    items = read(path)
    assert outcomes(items) == EXPECTED
    assert [i.record for i in items] == list(range(len(items)))
    assert {i.file.partition("!")[0] for i in items} == {name}
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_members_are_chosen_by_name_glob_and_format(tmp_path, name):
    path = put(tmp_path, name, KINDS[name](MEMBERS))
    assert outcomes(read(path, "p/d/a.txt")) == EXPECTED[:2]
    assert outcomes(read(path, "p/README.md")) == [("p/README.md", "about")]
    assert outcomes(read(path, "**/d/?.json*")) == EXPECTED[2:7]
    assert outcomes(read(path, "p/**/code.py", format="txt")) == [("p/code.py", "x = 1")]
    assert [f for f, _ in outcomes(read(path, format="md"))] == ["p/d/" + "long" * 40 + "é.md"]
    with pytest.raises(DataError, match=r"'p/d/c\.jsn'.*nearest.*'p/d/c\.json'"):
        read(path, "p/d/c.jsn")
    with pytest.raises(DataError, match=r"\.py"):
        read(path, "p/code.py")
    with pytest.raises(DataError, match="no member 'a text file'"):
        read(put(tmp_path, "b" + name, KINDS[name]([("x.py", b"")])))


def test_globs_match_across_folders():
    assert wanted("a/b/c.json", "a/*.json", "auto") and wanted("a/c.json", "a/**/*.json", "auto")
    assert wanted("a[1]/c.json", "a[1]/c.json", "auto") and not wanted("a/c.json", "b/*.json", "auto")


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize(
    "evil, why",
    [
        ("../up.txt", "leaves the folder"),
        ("d/../../up.txt", "leaves the folder"),
        ("/abs.txt", "leaves the folder"),
        ("C:\\x.txt", "leaves the folder"),
        ("d\\..\\x.txt", "leaves the folder"),
        ("../no-text.bin", "leaves the folder"),
        ("p/d/a.txt", "occurs twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_leave_the_folder_or_occur_twice_are_refused(tmp_path, name, evil, why):
    path = put(tmp_path, name, KINDS[name]([*MEMBERS, (evil, b"x")]))
    with pytest.raises(DataError, match=why) as e:
        read(path)
    assert repr(evil) in str(e.value)
    if "twice" not in why:  # a user who has looked names the members
        assert outcomes(read(path, "p/d/a.txt")) == EXPECTED[:2]


@pytest.mark.parametrize(
    "kind, why",
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind, why):
    info = tarfile.TarInfo("x.txt")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match=f"'x.txt' is a {why}"):
        read(put(tmp_path, "a.tar", tar([("a.txt", b"x"), (info, b"")])))


@pytest.mark.parametrize("mode, why", [(stat.S_IFLNK, "link"), (stat.S_IFIFO, "device")])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode, why):
    info = zipfile.ZipInfo("x.txt")
    info.create_system, info.external_attr = 3, (mode | 0o644) << 16
    with pytest.raises(DataError, match=f"'x.txt' is a {why}"):
        read(put(tmp_path, "a.zip", zipped([("a.txt", b"x"), (info, "/etc/passwd")])))


def test_encrypted_members_are_refused(tmp_path):
    data = bytearray(zipped([("a.txt", b"secret")]))
    data[6] |= 1  # the flag, in the local header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match=r"'a\.txt' is encrypted"):
        read(put(tmp_path, "a.zip", bytes(data)))


@pytest.mark.parametrize("name", ["a.tar.zst", "a.zip"])
def test_archives_inside_archives_are_skipped_and_reported(tmp_path, name, caplog):
    members = [("a.txt", b"x"), ("in.zip", zipped([("b.txt", b"y")])), ("c.tar.gz", b""), ("d.tgz", b"")]
    path = put(tmp_path, name, KINDS[name](members))
    with caplog.at_level(logging.WARNING):
        assert outcomes(read(path)) == [("a.txt", "x")]
    assert all(n in caplog.text for n in ("in.zip", "c.tar.gz", "d.tgz"))
    with pytest.raises(DataError, match="no member"):
        read(path, "in.zip")


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_archive_is_an_error_wherever_it_is_cut(tmp_path, name):
    members = [(f"{i}.txt", f"text {i:02} ".encode() * 200) for i in range(20)]
    good = KINDS[name](members)
    assert len(read(put(tmp_path, name, good))) == 20
    cuts = {0, 1, 100, len(good) // 3, len(good) // 2, len(good) - 1}
    if name == "a.tar":  # at and around every header; two blocks of zeros are the end mark
        cuts = {n for i in range(21) for n in (i * 2560, i * 2560 + 1, i * 2560 + 512, i * 2560 + 600)}
        cuts -= {20 * 2560 + n for n in (512, 600)}  # one of the two blocks is enough
    for cut in sorted(cuts):
        with pytest.raises(DataError, match=name):
            read(put(tmp_path, name, good[:cut]))
    with pytest.raises(DataError, match=name):
        read(put(tmp_path, name, b"this is no archive" * 100))


def test_a_damaged_header_inside_a_tar_is_not_its_end(tmp_path):
    good = tar([(f"{i}.txt", b"x" * 600) for i in range(9)])
    for at in (4 * 1536 + 3, 4 * 1536 + 150, 4 * 1536 + 260):  # name, checksum, magic
        data = bytearray(good)
        data[at] ^= 0x55
        with pytest.raises(DataError, match=r"a\.tar is damaged"):
            read(put(tmp_path, "a.tar", bytes(data)))
    data = bytearray(good)
    data[4 * 1536 : 4 * 1536 + 512] = bytes(512)
    with pytest.raises(DataError, match="follow its end mark"):
        read(put(tmp_path, "a.tar", bytes(data)))


def test_a_flipped_byte_in_a_zip_member_is_detected(tmp_path):
    data = bytearray(zipped([("a.txt", bytes(range(32, 120)) * 50)]))
    data[60] ^= 0xFF
    with pytest.raises(DataError, match=r"a\.zip"):
        read(put(tmp_path, "a.zip", bytes(data)))


def test_thousands_of_members_are_read_in_one_pass(tmp_path, monkeypatch):
    """The compressed bytes are read once: one that reopens each member reads them thousands of times."""
    from foundry.data.read import streams

    path = put(tmp_path, "a.tgz", gzip.compress(tar([(f"{i}.json", b'[{"text": "x"}]') for i in range(2500)])))
    reads, read_raw = [], streams.Stream.read

    def counted(self, n):
        data = read_raw(self, n)
        if isinstance(self._raw, io.BufferedReader) and self._raw.name == str(path):
            reads.append(len(data))
        return data

    monkeypatch.setattr(streams.Stream, "read", counted)
    assert len(read(path)) == 2500
    assert sum(reads) <= path.stat().st_size


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.zst", "a.tar.xz", "a.zip"])
def test_bombs_stop_at_the_limits(tmp_path, name):
    path = put(
        tmp_path,
        name,
        KINDS[name]([("a.txt", (b"ab" * 50 + b"\n") * 29_703), ("b.txt", (b"ab" * 50 + b"\n") * 29_703)]),
    )
    with pytest.raises(DataError, match="max_unpacked_bytes"):
        read(path, limits=Limits(1 << 22, 1e9, 5_000_000))
    assert len(read(path, limits=Limits(1 << 22, 2, 7_000_000))) == 2  # beyond the ratio, but below 64 MiB


def test_a_bomb_inside_an_archive_counts_over_all_members(tmp_path):
    layers = [(f"{i}.txt.gz", gzip.compress(b"x" * 3_000_000)) for i in range(3)]
    for name in ("a.tar", "a.zip"):
        path = put(tmp_path, name, KINDS[name](layers))
        assert len(read(path, limits=Limits(1 << 22, 1000, 9_100_000))) == 3
        with pytest.raises(DataError, match="max_unpacked_bytes"):
            read(path, limits=Limits(1 << 22, 1000, 8_000_000))
