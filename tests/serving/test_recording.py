"""What is recorded can be read again, whatever happened to the process and to the disk."""

import json
import os
import threading
import time

import pytest
from kills import every_kill

from foundry.config import DataError, LockError
from foundry.serving import recording
from foundry.serving.recording import (
    Preference,
    RecordedAnswer,
    RecordedExchange,
    RecordedModel,
    Recorder,
    feedback,
    preferences,
    read_recording,
    recording_files,
)

MODEL = RecordedModel(name="tiny", version="3", fingerprint="f" * 16, weights_sha256="a" * 64, weights="float32")


def exchange(n, text="äöü 水\n", **request):
    return RecordedExchange(
        id=f"cmpl-{n}",
        time=1.5,
        seconds=0.25,
        route="/v1/completions",
        key=None,
        model=MODEL,
        request=request or {"prompt": f"prompt {n}", "logit_bias": {"5": -1}},
        answers=[RecordedAnswer(index=0, prompt=0, text=text, seed=n, reason="stop", completion_tokens=2)],
        prompt_tokens=3,
        cached_tokens=0,
        completion_tokens=2,
        status=200,
    )


def record(folder, lines, **options):
    recorder = Recorder(folder, options.pop("bytes_per_file", 1 << 20), **options)
    for line in lines:
        recorder.add(line)
    recorder.close()


def test_lines_come_back_as_they_were_in_files_of_the_asked_size(tmp_path):
    lines = [exchange(n) if n % 3 else feedback(f"cmpl-{n}", 0, -1, "schlecht", "alice") for n in range(40)]
    record(tmp_path, lines[:20], bytes_per_file=2000)
    record(tmp_path, lines[20:], bytes_per_file=2000)
    assert list(read_recording(tmp_path)) == lines
    files = recording_files(tmp_path)
    assert len(files) > 5 and all(p.stat().st_size <= 2000 for p in files)
    assert [p.name for p in files] == [f"record-{i:06d}.jsonl" for i in range(1, len(files) + 1)]
    assert json.loads(files[0].read_text(encoding="utf-8").splitlines()[1])["answers"][0]["text"] == "äöü 水\n"


def test_a_kill_at_any_call_leaves_whole_lines_and_at_most_one_incomplete_one(tmp_path):
    lines = [exchange(n) for n in range(6)]
    rounds = iter(range(10_000))
    places = {}

    def prepare():
        places["now"] = tmp_path / str(next(rounds))
        record(places["now"], lines[:1])

    def work():
        record(places["now"], lines[1:], bytes_per_file=800)

    def check(place):
        found = list(read_recording(places["now"]))
        assert found == lines[: len(found)] and found, place
        record(places["now"], [exchange(99)])  # the next server continues
        assert list(read_recording(places["now"])) == [*found, exchange(99)], place

    assert every_kill(work, check, prepare) > 10


def test_an_incomplete_last_line_is_skipped_and_a_damaged_one_is_named(tmp_path):
    record(tmp_path, [exchange(1), exchange(2)])
    (path,) = recording_files(tmp_path)
    data = path.read_bytes()
    for cut in range(1, 60):
        path.write_bytes(data[:-cut])
        assert list(read_recording(tmp_path)) == [exchange(1)]
    path.write_bytes(b"{}\n" + data)
    with pytest.raises(DataError, match=r"record-000001\.jsonl, line 1, is not a line"):
        list(read_recording(tmp_path))
    with pytest.raises(DataError, match="is not a folder with a recording"):
        list(read_recording(tmp_path / "nothing"))


def test_only_one_server_records_into_a_folder(tmp_path):
    first = Recorder(tmp_path, 1 << 20)
    with pytest.raises(LockError, match="recording into"):
        Recorder(tmp_path, 1 << 20)
    first.close()
    Recorder(tmp_path, 1 << 20).close()


def test_a_full_disk_loses_a_line_says_so_once_and_ends_the_file(tmp_path, monkeypatch, caplog):
    real, broken, lost = recording.open_to_write, threading.Event(), []

    class Full:
        def __init__(self, f):
            self.f = f

        def __getattr__(self, name):
            return getattr(self.f, name)

        def write(self, data):
            if broken.is_set():
                self.f.write(data[:10])
                self.f.flush()
                raise OSError(28, "No space left on device")
            return self.f.write(data)

    import contextlib

    @contextlib.contextmanager
    def opened(path, mode):
        with real(path, mode) as f:
            yield Full(f)

    monkeypatch.setattr(recording, "open_to_write", opened)
    recorder = Recorder(tmp_path, 1 << 20, lambda: lost.append(1))
    recorder.add(exchange(1))
    while not recording_files(tmp_path)[0].stat().st_size:
        time.sleep(0.005)
    broken.set()
    recorder.add(exchange(2))
    recorder.add(exchange(3))
    while len(lost) < 2:
        time.sleep(0.005)
    broken.clear()
    recorder.add(exchange(4))
    recorder.close()
    assert list(read_recording(tmp_path)) == [exchange(1), exchange(4)]
    assert len(recording_files(tmp_path)) >= 2


def test_ratings_become_pairs_for_preference_training(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    lines = [
        exchange(1, "good", **chat),
        exchange(2, "bad", **chat, temperature=0.5),
        exchange(3, "not rated", **chat),
        exchange(4, "other prompt", prompt="x"),
        feedback("cmpl-1", 0, -1, None, None),
        feedback("cmpl-1", 0, 1, None, None),  # the last one counts
        feedback("cmpl-2", 0, -1, None, None),
        feedback("cmpl-4", 0, -1, None, None),
        feedback("cmpl-9", 0, 1, None, None),  # of nothing
    ]
    record(tmp_path, lines)
    assert list(preferences(tmp_path)) == [Preference(chat["messages"], "good", "bad")]


def test_a_recording_is_readable_while_it_is_written(tmp_path):
    recorder = Recorder(tmp_path, 1 << 20)
    for n in range(50):
        recorder.add(exchange(n))
        found = list(read_recording(tmp_path))
        assert found == [exchange(i) for i in range(len(found))]
    recorder.close()
    assert len(list(read_recording(tmp_path))) == 50
    assert os.listdir(tmp_path).count(".lock") == 1
