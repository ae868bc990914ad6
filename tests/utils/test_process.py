"""Child processes end with their parent, and processes stop cleanly on a signal."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from foundry.utils.process import StopSignal


def test_a_child_gets_the_signal_when_its_parent_is_killed(tmp_path):
    child = (
        "from foundry.utils.process import die_with_parent; import time; die_with_parent()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "p.stdout.readline()\nprint(p.pid, flush=True)\ntime.sleep(60)"
    )
    p = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(p.stdout.readline())
    assert psutil.pid_exists(pid)
    p.kill()
    p.wait()
    deadline = time.time() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.time() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_first_signal_is_a_flag_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_at_once():
    code = (
        "import time\nfrom foundry.utils.process import StopSignal\n"
        "with StopSignal():\n    print('ready', flush=True)\n"
        "    end = time.time() + 30\n    while time.time() < end: time.sleep(0.05)\n"
    )
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    p.stdout.readline()
    p.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert p.poll() is None
    p.send_signal(signal.SIGINT)
    assert p.wait(5) == 130


@pytest.mark.parametrize("ended", ["stage", "command"])
def test_ctrl_c_ends_with_one_line_and_exit_code_130(ended, tmp_path, monkeypatch, capsys):
    """A stage and a command; training saves its state first and has a message of its own."""
    from foundry import cli
    from foundry.utils import stage

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "die_with_parent", lambda: None)
    monkeypatch.setattr(stage, "load_params", lambda: None)
    monkeypatch.setattr(cli, "project_of_here", stopped)
    with pytest.raises(SystemExit) as e:
        stage.run_stage("clean", stopped) if ended == "stage" else cli.main(["status"])
    assert e.value.code == 130 and "topped by Ctrl-C" in capsys.readouterr().err


def test_a_worker_of_a_pool_ends_of_ctrl_c_without_a_traceback():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever the tests started with
        "from foundry.utils.process import as_worker; as_worker(); print('up', flush=True); import time; time.sleep(60)"
    )
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "up\n"
    p.send_signal(signal.SIGINT)
    assert (p.wait(30), p.stderr.read()) == (-signal.SIGINT, "")
