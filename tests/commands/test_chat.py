"""The command `foundry chat`: which model it talks to, what it refuses, and line editing."""

import io
import shutil

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from foundry import cli
from foundry.chat.terminal import on_terminal
from foundry.config import ModelConfig
from foundry.models import MiniLLM, save_model
from foundry.models.facts import TrainingFacts
from foundry.tokenizers.chat import TEMPLATE_SHA256


@pytest.fixture
def project(tokenizer, tmp_path, monkeypatch):
    """A folder with a chat model and a base model, of which nothing is registered."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "max_seq_len": 96}
    model = MiniLLM(ModelConfig(vocab_size=400, **shape))
    shutil.copytree(tokenizer.path.parent, tmp_path / "artifacts/tokenizer")
    for name, template in (("chat", TEMPLATE_SHA256), ("model", None)):
        facts = TrainingFacts(
            fingerprint="f" * 16,
            tokenizer_sha256=tokenizer.sha256,
            index_sha256="i" * 64,
            steps=1,
            tokens=1,
            template_sha256=template,
        )
        save_model(tmp_path / "artifacts" / name, model, facts)
    return tmp_path


def run(monkeypatch, capsys, *args, lines=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code = 0
    try:
        cli.main(["chat", *args])
    except SystemExit as e:
        code = e.code
    done = capsys.readouterr()
    return code, done.out, done.err


def test_a_chat_model_answers_over_a_pipe_and_a_seed_repeats_it(project, monkeypatch, capsys):
    options = ("artifacts/chat", "--seed", "3", "--max-new-tokens", "8", "--temperature", "1", "--system", "Be short.")
    code, out, _ = run(monkeypatch, capsys, *options, lines="Where?\n/show\nAnd?\n")
    assert code == 0 and out.startswith("chat from chat (weights ") and "context 96 tokens" in out
    assert "temperature = 1.0" in out and "tokens = 8" in out and "system = Be short." in out
    assert "> Where?\n" in out and "> And?\n" in out and "error" not in out
    assert run(monkeypatch, capsys, *options, lines="Where?\n/show\nAnd?\n")[1] == out


def test_a_base_model_is_refused_and_a_missing_one_names_the_command(project, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "artifacts/model")
    assert code == 1 and "is a base model" in err and "foundry generate" in err and "make chat" in err
    code, _, err = run(monkeypatch, capsys)
    assert code == 1 and "there is no chat model" in err and "`make chat` builds one" in err
    code, _, err = run(monkeypatch, capsys, "nothing/here")
    assert code == 1 and "is not a folder with a model" in err
    code, _, err = run(monkeypatch, capsys, "artifacts/chat", "--top-p", "7")
    assert code == 1 and "top_p must be" in err


def typed(keys, history=None):
    """What line editing makes of some keys: the messages until the end of the input."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        read = on_terminal(history)
        messages = []
        while (message := read()) is not None:
            messages.append(message)
    return messages


def test_line_editing_keeps_pasted_lines_together_and_remembers_messages(tmp_path):
    paste, end, up = "\x1b[200~", "\x1b[201~", "\x1b[A"
    history = tmp_path / ".foundry/chat/history"
    assert typed(f"one\r{paste}two\nthree{end}\r\x04", history) == ["one", "two\nthree"]
    assert typed("four\x1b\rfive\r\x04") == ["four\nfive"], "Alt+Enter begins another line"
    assert typed("lost\x03kept\r\x04") == ["kept"], "Ctrl-C discards what was typed"
    assert typed(f"{up}{up}{up}\r\x04", history) == ["one"], "of another session"
