"""`serving.speculation`: an answer takes fewer steps and has the same tokens."""

import pytest
from pydantic import ValidationError
from served_process import make_export, tiny_model
from small_server import wait_for

from foundry.config import ConfigError, ExportError, Serving, TokenizerParams
from foundry.config.sampling import Sampling
from foundry.inference.request import Delta, Finished, Request
from foundry.serving.folders import load_folder
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer

PROMPT = (1, *[7, 8, 9, 10, 11, 12] * 6)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    make_export(folder, tiny_model(1, context=256), tokenizer)
    return folder


def answer(folder, **serving):
    """(tokens, how it ended) of a greedy and of a sampled request."""
    backend = load_folder(folder, Serving(max_running=2, **serving), "cpu", "x").backend
    try:
        results = []
        for how in (Sampling(0.0), Sampling(0.3)):
            events = []
            backend.submit(Request(PROMPT, how, 120, seed=5), events.append)
            wait_for(lambda events=events: events and isinstance(events[-1], Finished))
            tokens = [t.id for e in events if isinstance(e, Delta) for t in e.tokens]
            results.append((tokens, events[-1]))
        return results
    finally:
        backend.close(drain=False)


def test_guesses_are_accepted_and_change_no_token(folder):
    plain = answer(folder)
    assert all(end.drafted == 0 and len(tokens) > 20 for tokens, end in plain)
    for serving in ({"speculation": "ngram"}, {"speculation": "draft", "draft": str(folder)}):
        guessed = answer(folder, **serving)
        assert [tokens for tokens, _ in guessed] == [tokens for tokens, _ in plain]
        greedy = guessed[0][1]
        assert greedy.drafted >= greedy.accepted > 0
    assert greedy.accepted > 0.8 * greedy.drafted  # of the model itself, whose guesses are right up to the end


def test_a_draft_model_with_another_tokenizer_is_refused(folder, tmp_path):
    texts = [f"other words {i * 7919 % 9973:x} of another corpus, {i % 97} times" for i in range(2000)]
    train_tokenizer(texts, TokenizerParams(vocab_size=400), tmp_path / "tokenizer.model")
    make_export(tmp_path / "export", tiny_model(1), Tokenizer(tmp_path))
    serving = Serving(speculation="draft", draft=str(tmp_path / "export"))
    with pytest.raises(ExportError, match="another tokenizer"):
        load_folder(folder, serving, "cpu", "x")


def test_a_draft_model_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises((ConfigError, ExportError), match="nothing"):
        load_folder(folder, Serving(speculation="draft", draft=str(tmp_path / "nothing")), "cpu", "x")


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"speculation": "draft"}, "belong together"),
        ({"draft": "artifacts/export"}, "belong together"),
        ({"speculation": "ngram", "draft": "artifacts/export"}, "belong together"),
        ({"speculation": "ngram", "backend": "llamacpp"}, "needs the backend foundry"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, rule):
    with pytest.raises(ValidationError, match=rule):
        Serving(**values)
