"""The card names whom to thank and under what terms, in the hub's format; nothing in a source's text can break it."""

import dataclasses
import re

import pytest
import yaml
from example_records import example_cleaning, example_evaluation, example_proof, example_source

from foundry.config import ModelConfig
from foundry.data.clean.card import card as data_card
from foundry.export.card import CardFacts, WeightFile, model_card
from foundry.export.greedy import Sample
from foundry.export.licence import licence_notice
from foundry.export.proof import (
    BitsPerByte,
    FormatCost,
    FormatCosts,
    GreedyProof,
    LlamaCppFormat,
    LlamaCppProof,
    LlamaCppTokenIds,
    LogProbsProof,
    SettingsProof,
)
from foundry.models import ModelFacts
from foundry.models.accounting import train_flops_per_token
from foundry.utils.bootstrap import Interval
from foundry.utils.cleaning_report import DocumentAccount, RecordAccount, SourceAccount, SplitSize
from foundry.utils.evaluation_report import CompressedSize, Contamination, PartScore, TaskScore, TrainingOverlap

FACTS = ModelFacts(
    fingerprint="f" * 16,
    index_sha256="1" * 64,
    tokenizer_sha256="2" * 64,
    weights_sha256="3" * 64,
    steps=1000,
    tokens=2_048_000,
)
BITS = PartScore(bits_per_byte=Interval(value=1.2345, low=1.2, high=1.3), documents=7, bytes=5000)
REPORT = example_evaluation(
    BITS.bits_per_byte,
    perplexity=Interval(value=42.5, low=40.1, high=45.2),
    by_source={"wiki": BITS},
    baselines={"ppmd_order_8": CompressedSize(alone=2.1, given_train=1.55)},
    test_sha256="4" * 64,
)
DROPPED = {"too_short": 7, "blocked": 0, "exact_duplicate": 3}
COUNTS = {"incoming": 100, "kept": 90, "dropped": DROPPED, "repaired": {"html": 2, "normalized": 0}}
CLEANING = {
    "documents": DocumentAccount(**COUNTS),
    "records": RecordAccount(incoming=103, quarantined=3, reasons={}, examples=[]),
    "splits": {"train": SplitSize(documents=80, bytes=123_456), "test": SplitSize(documents=10, bytes=9_876)},
    "per_source": {"wiki": SourceAccount(records=103, **COUNTS, quarantined=3, bytes=133_332)},
}
COSTS = FormatCosts(
    documents=5,
    tokens=4321,
    bytes=9999,
    float=BitsPerByte(bits_per_byte=1.2346),
    formats={
        "q8_0": FormatCost(
            file="lm-q8_0.gguf",
            bytes=2222,
            bits_per_byte=1.2399,
            difference=Interval(value=0.0053, low=0.0041, high=0.0066),
            top1_agreement=0.9876,
        )
    },
)
FILES = [
    WeightFile("model.safetensors", 8888, "6" * 64),
    WeightFile("lm-f32.gguf", 9000, "7" * 64),
    WeightFile("lm-q8_0.gguf", 2222, "8" * 64),
]


def source(**fields):
    return example_source(**{"name": "wiki", "url": "pypi:x==1", "sha256": "5" * 64, **fields})


def card(sources, **changes):
    facts = CardFacts(
        name="lm",
        cfg=ModelConfig(),
        facts=FACTS,
        report=REPORT,
        cleaning=example_cleaning(*sources, **CLEANING),
        proof=example_proof(),
        costs=COSTS,
        samples=[Sample("The ", "salt.")],
        files=FILES,
        symbols=[],
    )
    return model_card(dataclasses.replace(facts, **changes))


def head(text):
    return yaml.safe_load(text.split("---")[1])


def test_it_has_every_number_hash_and_name():
    text = card([source()])
    flops = f"{train_flops_per_token(ModelConfig()) * 2_048_000:.2e}"
    parts = [
        *("1.2345", "1.2000 to 1.3000", "42.5", "ppmd_order_8", "1.5500", "the authors", "CC-BY-SA-4.0"),
        *("2,048,000 tokens", flops, "too short 7, exact duplicate 3", "133,332", "123,456", "html 2", "set aside: 3"),
        *("29 tensors bit for bit", "34,567 tokens of 126 strings", "off by less than 1e-05"),
        *("509 tokens of 8 prompts, none different, 1 tie", "largest rounding 0.0123"),
        *("not proved here: xllamacpp is not installed", "2,222", "1.2399", "98.76%"),
        *("+0.00530 (+0.00410 to +0.00660)", "4,321 tokens of 5 documents", "1.2346", "The salt."),
        "llama-cli -m lm-q8_0.gguf",
    ]
    for part in parts:
        assert part in text, part
    assert all(digit * 64 in text for digit in "12345678") and "f" * 16 in text


def test_what_is_in_no_input_is_left_out():
    text = card([source()]).lower()
    assert not [word for word in ("hour", "gpu", "carbon", "energy", "overlap of the evaluated") if word in text]


def test_a_hub_reads_its_header():
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    text = card([source(), source(name="hub", url="hf:owner/texts@main/a/*.parquet", lang="zh")])
    read = ModelCard(text).data
    assert read.language == ["en", "zh"] and read.datasets == ["owner/texts"] and read.library_name == "transformers"
    assert read.license == "cc-by-sa-4.0" and read.pipeline_tag == "text-generation"
    name, results = model_index_to_eval_results(head(text)["model-index"])
    assert name == "lm" and [(r.metric_type, r.metric_value) for r in results] == [
        ("bits_per_byte", 1.2345),
        ("perplexity", 42.5),
    ]


def test_tasks_and_contamination_are_reported_if_they_were_measured():
    texts, runs = Interval(value=0.077, low=0.05, high=0.1), Interval(value=0.01, low=0.0, high=0.02)
    overlap = TrainingOverlap(texts=texts, runs=runs, looked_at=3)
    right = Interval(value=0.5, low=0.4, high=0.6)
    task = TaskScore(score=0.4321, low=0.4, high=0.46, acc_norm=right, chance=0.25, n=200, contamination=overlap)
    contamination = Contamination(ngram=13, texts=texts, runs=runs, looked_at=3)
    changes = {"tasks": {"cloze": task}, "contamination": contamination}
    text = card([source()], report=REPORT.model_copy(update=changes))
    assert "| cloze | 0.4321 | 0.4000 to 0.4600 | 0.2500 | 200 | 7.7 % (5.0 to 10.0) |" in text
    assert "7.7 % (5.0 to 10.0) of 3 test documents have a run of 13 words" in text
    assert "1.0 % (0.0 to 2.0) of all their runs" in text
    plain = card([source()])
    assert "cloze" not in plain and "chance" not in plain


def test_a_run_of_llama_cpp_is_reported_with_its_numbers():
    ran = LlamaCppProof(
        settings=SettingsProof(compared=10),
        token_ids=LlamaCppTokenIds(strings=126, tokens=777),
        log_probs=LogProbsProof(positions=8, vocabulary=400, tolerance=1e-4, largest_difference_below=1e-6),
        greedy=GreedyProof(prompts=8, tokens=512, ties=0),
        formats={"q8_0": LlamaCppFormat(total_variation=0.0042)},
    )
    text = card([source()], proof=example_proof().model_copy(update={"llama_cpp": ran}))
    assert "777 tokens" in text and "8 full contexts, off by less than 1e-06" in text and "not proved" not in text
    assert "| GGUF q8_0 | llama.cpp | runs; total variation to the model 0.0042 |" in text


@pytest.mark.parametrize(
    ("licenses", "shown", "stated"),
    [
        (["CC-BY-SA-4.0"], "cc-by-sa-4.0", "share-alike"),
        (["CC-BY-SA-4.0", "MIT"], "other", "share-alike"),
        (["CC0-1.0"], "cc0-1.0", "Licences of the texts: CC0-1.0."),
        (["OGL-UK-3.0"], "other", "Licences of the texts: OGL-UK-3.0."),
        (["unknown"], "other", "find out before you share"),
    ],
)
def test_the_licence_follows_the_texts(licenses, shown, stated):
    sources = [source(name=f"s{i}", license=x) for i, x in enumerate(licenses)]
    text = card(sources)
    assert head(text)["license"] == shown and stated in text
    assert ("share-alike" in text) == any("-SA-" in x for x in licenses)
    notice = licence_notice("lm", sources)
    assert (notice is not None) == ("`LICENSE`" in text) == (len(licenses) == 1 and licenses != ["unknown"])
    assert notice is None or (licenses[0] in notice and "s0 (pypi:x==1): the authors" in notice)


def test_a_card_of_the_least_inputs_is_complete():
    report = REPORT.model_copy(update={"baselines": None})
    cleaning = example_cleaning(source(lang="und", attribution=""))
    text = card([], report=report, cleaning=cleaning, costs=None, samples=[])
    assert "language" not in head(text) and "none given" in text and "compressor" not in text
    assert "Repaired" not in text and "set aside" not in text
    assert "| lm-q8_0.gguf | 2,222 | not measured |" in text and "| lm-f32.gguf | 9,000 | as the model |" in text


def test_the_tokenizer_is_described_as_it_is():
    assert "Symbols that are one piece" not in card([source()])
    text = card([source()], symbols=["<think>", "a\nb", "x`y|z"])
    assert "in a text: `<think>`, `a\\nb`, ``x`y|z``." in text
    assert "and 7 more." in card([source()], symbols=[f"<{i}>" for i in range(57)])


def test_hostile_text_stays_where_it_belongs():
    text = card([source(attribution="a | b\n| c |\n# title")], samples=[Sample("The ", "```\n# escaped\n```")])
    (row,) = [line for line in text.split("\n") if "pypi:x==1" in line]
    assert r"a \| b \| c \| # title" in row and "\n# title" not in text
    assert "````text\nThe ```\n# escaped\n```\n````" in text


HOSTILE = "one\n\n# a title\n| a | b |\n<script>x</script> [y](javascript:z) `code` **bold** &lt; \\| end\r\n---\n"


def test_text_of_a_user_is_one_line_and_never_markup_in_both_cards_and_the_notice():
    hostile = source(attribution=HOSTILE, license=HOSTILE, url=f"file:{HOSTILE}", member=HOSTILE)
    for text in (card([hostile]), data_card(example_cleaning(hostile))):
        body = text.split("\n---\n", 1)[1] if text.startswith("---") else text
        lines = body.split("\n")
        assert not [x for x in lines if x.strip() in ("# a title", "| a | b |", "---") or x.startswith("<script>")]
        shown = [x for x in lines if "bold" in x]
        assert shown and all(
            r"\<script\>x\</script\> \[y\](javascript:z) \`code\` \*\*bold\*\* \&lt;" in x for x in shown
        )
    rows = [x for x in card([hostile]).split("\n") if x.startswith("| wiki |")]
    assert len(rows) == 2 and all(len(cells(x)) == n for x, n in zip(rows, (6, 5), strict=True))
    notice = licence_notice("lm", [hostile])
    assert len(notice.split("\n")) == 8 and "\n# a title" not in notice


def cells(row):
    """The cells as a GitHub reader cuts them: a backslash takes the next character with it."""
    return re.findall(r"((?:\\.|[^|\\])*)\|", row[1:])
