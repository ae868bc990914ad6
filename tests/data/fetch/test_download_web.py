"""Files over https: resumed, retried, checked; nothing partial is ever under data/raw."""

import gzip
import hashlib
import io
import json
import logging
import os
import tempfile
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from foundry.config import ConfigError, DataError, FoundryError, UnreachableError, parse_config
from foundry.data.fetch import web
from foundry.data.fetch.download import download
from foundry.data.fetch.store import DownloadStopped, Transfers

BODY = os.urandom(100_000)
SHA = hashlib.sha256(BODY).hexdigest()
RAW = Path("data/raw")
LOG = logging.getLogger("foundry")


def make_config(*sources):
    return parse_config({"download": {"sources": list(sources)}})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(web, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(web, "TRIES", 3)


def fetch(site, sha256=SHA, name="a.bin"):
    site.files.setdefault("/x/" + name, BODY)
    source = {"name": "s", "url": f"{site.url}/x/{name}", "format": "txt"} | ({"sha256": sha256} if sha256 else {})
    download(make_config(source), RAW, LOG)
    return (RAW / "s" / name).read_bytes()


def leftovers(project):
    return sorted(p.name for p in (project / ".foundry/downloads").glob("*.part*"))


def test_broken_connections_resume_where_they_stopped(site, project):
    site.plan = ["cut", "cut"]
    assert fetch(site) == BODY
    ranges = [h.get("Range") for _, h in site.requests]
    assert ranges == [None, "bytes=50000-", "bytes=75000-"]
    assert [h.get("If-Range") for _, h in site.requests][1:] == ['"one"'] * 2
    assert site.sent == len(BODY)  # no byte twice
    assert leftovers(project) == []


def test_a_transfer_resumes_in_the_next_run(site, project, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 1)
    site.plan = ["cut", (503, {})]
    with pytest.raises(DataError, match="503"):
        fetch(site)
    assert not RAW.exists()
    assert fetch(site) == BODY
    assert site.requests[-1][1]["Range"] == "bytes=50000-"


def test_server_that_ignores_ranges_restarts_cleanly(site, project):
    site.plan = ["cut", "no ranges"]
    assert fetch(site) == BODY
    assert "Range" in site.requests[1][1]


def test_server_that_sends_another_range_is_not_believed(site, project):
    site.plan = ["cut", "wrong range"]
    assert fetch(site, sha256=None) == BODY


def test_file_that_changes_in_the_middle_is_never_a_mixture(site, project):
    new = os.urandom(80_000)

    def change(site):
        site.files["/x/a.bin"], site.etag = new, '"two"'

    site.plan = ["cut", change]
    assert fetch(site, sha256=None) == new


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_without_a_strong_validator_nothing_is_joined(site, project, etag):
    site.etag = etag
    site.plan = ["cut"]
    assert fetch(site) == BODY
    assert all("Range" not in h for _, h in site.requests)


def test_a_body_that_is_always_short_fails_with_the_number_of_tries(site, project):
    site.plan = ["cut, no ranges"] * 10
    with pytest.raises(DataError, match="3 tries"):
        fetch(site, sha256=None)
    assert not RAW.exists()
    assert len(site.requests) == 4  # the first brought new bytes, three did not


def test_retry_after_is_honoured(site, project, monkeypatch):
    waits = []
    monkeypatch.setattr(web.time, "sleep", waits.append)
    site.plan = [
        (503, {"Retry-After": "7"}),
        (429, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}),
        (503, {"Retry-After": "99999"}),
    ]
    monkeypatch.setattr(web, "TRIES", 9)
    assert fetch(site) == BODY
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2] == web.LONGEST_WAIT


@pytest.mark.parametrize("status", [404, 403, 410])
def test_what_waiting_cannot_fix_is_reported_at_once(site, project, status):
    site.plan = [(status, {})]
    with pytest.raises(DataError, match=str(status)):
        fetch(site)
    assert len(site.requests) == 1


def test_wrong_hash_names_both_and_leaves_nothing(site, project):
    with pytest.raises(DataError) as e:
        fetch(site, sha256="0" * 64)
    assert SHA in str(e.value) and "0" * 64 in str(e.value)
    assert not RAW.exists() and leftovers(project) == []


def test_known_hash_transfers_once_ever(site, project):
    fetch(site)
    asked = len(site.requests)
    (RAW / "manifest.json").unlink()
    assert fetch(site) == BODY
    assert len(site.requests) == asked == 1


def test_a_file_of_unknown_hash_is_requested_and_not_sent_again(site, project):
    fetch(site, sha256=None)
    (project / "data.lock.json").unlink()
    assert fetch(site, sha256=None) == BODY
    assert site.requests[1][1]["If-None-Match"] == '"one"' and site.sent == len(BODY)
    site.files["/x/a.bin"], site.etag = b"new", '"two"'
    (project / "data.lock.json").unlink()
    assert fetch(site, sha256=None) == b"new"


def test_damaged_store_is_fetched_again(site, project):
    fetch(site)
    (project / ".foundry/downloads" / SHA / "a.bin").write_bytes(BODY[:-1] + b"?")
    assert fetch(site) == BODY
    assert len(site.requests) == 2


def test_bytes_are_stored_as_published(site, project):
    packed = gzip.compress(b"text " * 100)
    site.files["/x/a.txt.gz"] = packed
    site.headers = {"Content-Encoding": "gzip"}
    assert fetch(site, sha256=None, name="a.txt.gz") == packed
    assert site.requests[0][1]["Accept-Encoding"] == "identity"


def test_redirects_are_followed_but_never_to_plain_http(site, project):
    site.plan = [(302, {"Location": "/x/a.bin?again"}), (301, {"Location": "/x/a.bin"})]
    assert fetch(site, sha256=None) == BODY
    for location in ("http://corpus.invalid/a.bin", "ftp://corpus.invalid/a.bin", "file:///etc/passwd"):
        site.plan = [(302, {"Location": location})]
        with pytest.raises(DataError, match=r"http is refused|only https"):
            fetch(site, sha256=None, name="b.bin")


def test_redirects_in_a_circle_are_reported_with_the_circle(site, project):
    site.plan = [(302, {"Location": "/x/there"}), (302, {"Location": "/x/back"})] * 20
    with pytest.raises(DataError, match=r"in a circle: .*/x/there → .*/x/back"):
        fetch(site)
    site.plan = [(302, {"Location": f"/x/{i}"}) for i in range(20)]
    with pytest.raises(DataError, match="10 times, and no end"):
        fetch(site)


@pytest.mark.parametrize(
    "location",
    [
        "https://10.1.2.3/a.bin",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.bin",
        "https://[::ffff:192.168.0.1]/a.bin",
        "https://[fe80::1]/a.bin",
        "https://0.0.0.0/a.bin",
        "https://localhost/a.bin",
    ],
)
def test_redirects_to_private_addresses_are_refused(site, project, location):
    site.plan = [(302, {"Location": location})]
    with pytest.raises(DataError, match="allow_private"):
        fetch(site)
    assert len(site.requests) == 1


def test_redirect_to_a_name_that_resolves_to_a_private_address_needs_permission(site, project):
    site.files["/x/a.bin"] = BODY
    there = site.url.replace("127.0.0.1", "localhost") + "/x/a.bin"
    source = {"name": "s", "url": f"{site.url}/x/a.bin", "format": "txt"}
    for allowed in (False, True):
        site.plan = [(302, {"Location": there})]
        config = parse_config({"download": {"sources": [source], "allow_private": allowed}})
        if allowed:
            download(config, RAW, LOG)
            assert (RAW / "s/a.bin").read_bytes() == BODY and site.requests[-1][1]["Host"].startswith("localhost")
        else:
            with pytest.raises(DataError, match=r"localhost.*not a public address"):
                download(config, RAW, LOG)


@pytest.mark.parametrize("harm", ["long", "reset", "stall"])
def test_a_server_that_lies_resets_or_falls_silent_is_retried(site, project, monkeypatch, harm):
    if harm == "stall":
        monkeypatch.setattr(web, "TIMEOUT", (5.0, 0.5))
    site.plan = [harm]
    assert fetch(site, sha256=None) == BODY
    assert len(site.requests) >= 2 and leftovers(project) == []


@pytest.mark.parametrize("harm", ["long", "reset", "stall"])
def test_a_server_that_never_recovers_is_reported(site, project, monkeypatch, harm):
    if harm == "stall":
        monkeypatch.setattr(web, "TIMEOUT", (5.0, 0.2))
    site.etag = None  # each try starts from scratch
    site.plan = [harm] * 10
    with pytest.raises(DataError, match=r"3 tries in a row"):
        fetch(site, sha256=None)
    assert not RAW.exists() and not (project / "data.lock.json").exists()


def test_a_length_announced_too_short_never_passes_for_the_known_file(site, project):
    site.plan = ["short"] * 10
    with pytest.raises(DataError, match=SHA):
        fetch(site)
    assert not RAW.exists()


def test_a_file_larger_than_the_disk_is_refused_before_it_comes(site, project):
    site.plan = ["huge"]
    with pytest.raises(DataError, match=r"1,000,000,000,000,000,000 bytes .* [\d,]+ are free"):
        fetch(site)
    assert len(site.requests) == 1 and not RAW.exists()


def test_no_permission_to_write_is_reported(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # that other users may enter, unlike those of pytest
        os.chmod(folder, 0o555)
        monkeypatch.chdir(folder)
        monkeypatch.delenv("DVC_ROOT", raising=False)
        root = os.geteuid() == 0
        if root:  # who may write everywhere
            os.seteuid(65534)
        try:
            with pytest.raises(FoundryError, match="Permission denied"):
                download(make_config({"name": "s", "url": "http://127.0.0.1:9/a.txt"}), RAW, LOG)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o755)


def test_the_bar_ends_at_the_bytes_that_came(site, project):
    site.files["/x/a.bin"] = BODY
    site.plan = ["cut", "cut, no ranges"]
    with tqdm(file=io.StringIO()) as bar:
        web.fetch_url(f"{site.url}/x/a.bin", "a.bin", None, project / "store", Transfers(bar, 1), False)
        assert bar.n == bar.total == site.sent > len(BODY)


def test_a_stopped_download_keeps_what_came(site, project):
    site.files["/x/a.bin"] = BODY
    transfers = Transfers(tqdm(file=io.StringIO()), 1)
    transfers.stop()
    with pytest.raises(DownloadStopped):
        web.fetch_url(f"{site.url}/x/a.bin", "a.bin", None, project / "store", transfers, False)
    (part,) = (project / "store").glob("*.part")
    assert 0 < part.stat().st_size < len(BODY) and BODY.startswith(part.read_bytes())


def test_plain_http_is_refused_before_any_work(project):
    with pytest.raises(ConfigError, match="use https"):
        download(make_config({"name": "s", "url": "http://corpus.invalid/a.txt"}), RAW, LOG)
    assert not (project / ".foundry").exists()


def test_unreachable_server_is_named(project):
    with pytest.raises(DataError, match="no connection"):
        download(make_config({"name": "s", "url": "http://127.0.0.1:9/a.txt"}), RAW, LOG)


def test_all_failures_are_reported_together_and_old_results_stay(site, project):
    fetch(site)
    sources = [{"name": n, "url": f"{site.url}/missing/{n}.txt"} for n in ("one", "two")]
    sources += [{"name": "three", "url": "file:corpus/nowhere/*.txt"}, {"name": "good", "url": f"{site.url}/x/a.bin"}]
    with pytest.raises(DataError) as e:
        download(make_config(*sources), RAW, LOG)
    message = str(e.value)
    assert "3 of 4" in message and all(f"{n}: " in message for n in ("one", "two", "three")) and "good: " not in message
    assert json.loads((RAW / "manifest.json").read_text())["sources"][0]["name"] == "s"
    assert sorted(p.name for p in RAW.parent.iterdir()) == ["raw"]


def test_two_members_of_one_file_are_one_transfer(site, project):
    site.files["/x/a.zip"] = b"PK\x03\x04" + BODY
    sources = [{"name": n, "url": f"{site.url}/x/a.zip", "member": f"{n}.txt"} for n in ("one", "two")]
    manifest = download(make_config(*sources), RAW, LOG)
    assert len(site.requests) == 1
    assert [s.files[0].path for s in manifest.sources] == ["one/a.zip", "two/a.zip"]


LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"
OTHERS = {
    "etag": ({}, '"two"', BODY),
    "last_modified": ({"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}, '"one"', BODY),
    "length": ({}, '"one"', BODY[:-1]),
    "longer": ({}, '"one"', BODY + b"more"),
    "coding": ({"Content-Encoding": "gzip"}, '"one"', BODY),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_206_of_another_version_restarts_though_the_server_ignores_if_range(site, project, what):
    """No mixture of the bytes of a file that changed in the middle of its transfer is ever stored."""
    headers, etag, length = OTHERS[what]
    new = bytes(b ^ 255 for b in length)
    sent = gzip.compress(new, 0) if what == "coding" else new

    def change(site):
        site.files["/x/a.bin"], site.etag = sent, etag
        site.headers = {"Last-Modified": LONG_AGO, **headers}

    site.ignores_if_range, site.headers = True, {"Last-Modified": LONG_AGO}
    site.plan = ["cut", change]
    assert fetch(site, sha256=None) == new
    assert [h.get("Range") for _, h in site.requests] == [None, "bytes=50000-", None]


def test_a_range_that_is_only_a_part_of_the_rest_is_completed(site, project):
    site.plan = ["cut", "half range", "half range"]
    assert fetch(site, sha256=None) == BODY
    assert [h.get("Range") for _, h in site.requests] == [None, "bytes=50000-", "bytes=75000-", "bytes=87500-"]


def test_a_range_beyond_the_end_restarts(site, project):
    """A 416: the file is shorter now than the part that was received."""
    new = BODY[:10_000]

    def shrink(site):
        site.files["/x/a.bin"], site.etag = new, '"two"'
        return (416, {"Content-Range": f"bytes */{len(new)}"})

    site.plan = ["cut", shrink]
    assert fetch(site, sha256=None) == new


def test_a_kill_between_the_new_version_and_its_first_byte_joins_nothing(site, project, monkeypatch):
    site.plan = ["cut", (503, {})]
    monkeypatch.setattr(web, "TRIES", 1)
    with pytest.raises(DataError):
        fetch(site, sha256=None)
    new = os.urandom(80_000)
    site.files["/x/a.bin"], site.etag = new, '"two"'

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(web._Transfer, "_receive", die)
        fetch(site, sha256=None)
    assert fetch(site, sha256=None) == new


@pytest.mark.parametrize(("age", "resumes"), [(3600, True), (0, False)])
def test_a_date_is_a_validator_only_where_the_file_was_older_than_the_answer(site, project, age, resumes):
    site.etag, site.headers = None, {"Last-Modified": formatdate(time.time() - age, usegmt=True)}
    site.ignores_if_range, site.plan = True, ["cut"]
    assert fetch(site, sha256=None) == BODY
    assert ("Range" in site.requests[1][1]) is resumes


@pytest.mark.parametrize("coding", ["gzip", "X-Gzip"])
def test_gzip_that_was_not_requested_is_undone(site, project, coding):
    text = b"some text of a book\n" * 5000
    site.files["/x/a.txt"] = gzip.compress(text)
    site.headers = {"Content-Encoding": coding}
    assert fetch(site, sha256=None, name="a.txt") == text
    (project / "data.lock.json").unlink()
    site.headers = {}
    site.files["/x/b.txt"] = text  # the same file of a better server
    assert fetch(site, sha256=hashlib.sha256(text).hexdigest(), name="b.txt") == text
    assert leftovers(project) == [] and not list((project / ".foundry/downloads").glob("*.plain"))


def test_a_compressed_transfer_resumes_in_its_compressed_bytes(site, project):
    text = BODY[:40_000] * 2
    site.files["/x/a.txt"] = packed = gzip.compress(text)
    site.headers, site.plan = {"Content-Encoding": "gzip"}, ["cut"]
    assert fetch(site, sha256=None, name="a.txt") == text
    assert site.requests[1][1]["Range"] == f"bytes={len(packed) // 2}-"


def test_the_hash_decides_whether_a_coding_belongs_to_the_file(site, project):
    site.headers = {"Content-Encoding": "gzip"}
    assert fetch(site) == BODY  # which is not gzip, but has the hash of the parameters


def test_a_coding_that_is_not_undone_is_refused(site, project):
    site.headers = {"Content-Encoding": "br"}
    with pytest.raises(DataError, match="Content-Encoding 'br'"):
        fetch(site, sha256=None)
    site.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DataError, match="sends something else"):
        fetch(site, sha256=None)
    site.files["/x/a.bin"] = gzip.compress(BODY)[:-100]
    with pytest.raises(UnreachableError, match="damaged"):
        fetch(site, sha256=None)
    assert not RAW.exists()


@pytest.mark.parametrize("value", ["²", "1e3", "-5", "", "9" * 400])
def test_nonsense_in_headers_is_no_crash(site, project, value):
    answer = SimpleNamespace(headers={"Content-Length": value, "Retry-After": value})
    assert web._length(answer) is None
    assert web._retry_after(answer) in (None, float("inf"))
    site.plan = [(503, {"Retry-After": "²"})]
    assert fetch(site) == BODY


def test_a_kill_between_the_last_byte_and_the_name_costs_one_byte(site, project, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(web._Transfer, "finished", die)
        fetch(site, sha256=None)
    assert fetch(site, sha256=None) == BODY and site.sent == len(BODY) + 1


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_kill_after_decompression_joins_nothing(site, project, monkeypatch, size):
    """The decompressed bytes are never taken for the beginning of the compressed ones, be they fewer or more."""
    text = b"a" * size
    site.files["/x/a.txt"] = gzip.compress(text)
    site.headers = {"Content-Encoding": "gzip"}
    finished = web._Transfer.finished

    def die(*args):
        finished(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(web._Transfer, "finished", die)
        fetch(site, sha256=None, name="a.txt")
    assert fetch(site, sha256=None, name="a.txt") == text
    assert not list((project / ".foundry/downloads").glob("*.p*"))


def test_a_file_whose_length_was_not_announced_resumes(site, project):
    site.plan = ["cut chunked"]
    assert fetch(site, sha256=None) == BODY
    assert [h.get("Range") for _, h in site.requests] == [None, "bytes=50000-"]
