"""The card names whom to thank and under what terms; nothing in a source's text can break its tables."""

import pytest
import yaml

from foundry.config import ModelConfig
from foundry.export.card import model_card

BPB = {"value": 1.2345, "low": 1.2, "high": 1.3}
FACTS = {
    "fingerprint": "f" * 16,
    "index_sha256": "1" * 64,
    "tokenizer_sha256": "2" * 64,
    "weights_sha256": "3" * 64,
    "steps": 1000,
    "tokens": 2_048_000,
}
REPORT = {
    "test": {"bits_per_byte": BPB, "documents": 7, "perplexity_token": 42.5},
    "by_source": {"wiki": {"bits_per_byte": BPB, "documents": 7}},
    "baselines": {"ppmd_order_8": {"alone": 2.1, "given_train": 1.55}},
    "test_sha256": "4" * 64,
}


def source(**changes):
    terms = {"license": "CC-BY-SA-4.0", "attribution": "the authors"}
    return {"name": "wiki", "url": "pypi:x==1", **terms, "lang": "en", "sha256": "5" * 64, **changes}


def card(sources, report=REPORT):
    return model_card("lm", ModelConfig(), FACTS, report, sources, "lm-f16.gguf", {"hf/model.safetensors": "6" * 64})


def head(text):
    return yaml.safe_load(text.split("---")[1])


def test_it_holds_every_number_hash_and_name():
    text = card([source()])
    for part in (
        "1.2345",
        "1.2000 to 1.3000",
        "42.5",
        "ppmd_order_8",
        "1.5500",
        "the authors",
        "CC-BY-SA-4.0",
        "2,048,000 tokens",
        "lm-f16.gguf",
    ):
        assert part in text
    assert all(digit * 64 in text for digit in "123456") and "f" * 16 in text


@pytest.mark.parametrize(
    ("licenses", "shown", "told"),
    [
        (["CC-BY-SA-4.0"], "cc-by-sa-4.0", "share-alike"),
        (["CC-BY-SA-4.0", "MIT"], "other", "share-alike"),
        (["CC0-1.0"], "cc0-1.0", "Licences of the texts: CC0-1.0."),
        (["unknown"], "other", "find out before you share"),
    ],
)
def test_the_licence_follows_the_texts(licenses, shown, told):
    text = card([source(name=f"s{i}", license=x) for i, x in enumerate(licenses)])
    assert head(text)["license"] == shown and told in text
    assert ("share-alike" in text) == any("-SA-" in x for x in licenses)


def test_a_card_without_baselines_and_languages_is_whole():
    text = card([source(lang="und", attribution="")], {k: v for k, v in REPORT.items() if k != "baselines"})
    assert "language" not in head(text) and "none given" in text and "compressor" not in text


def test_a_hostile_attribution_stays_in_its_cell():
    text = card([source(attribution="a | b\n| c |\n# title")])
    (row,) = [line for line in text.split("\n") if "pypi:x==1" in line]
    assert r"a \| b \| c \| # title" in row and "\n# title" not in text
