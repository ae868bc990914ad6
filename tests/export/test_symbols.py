"""User symbols have the same ids in SentencePiece, transformers and llama.cpp; symbols that cannot are refused.

Each rule of `foundry.export.exportable` about symbols is tested on both sides: without it an engine gives other ids.
"""

import importlib.util

import pytest

from foundry.config import ExportError, ModelConfig, TokenizerParams
from foundry.data.tokens.shards import read_clean
from foundry.export import export_gguf, export_huggingface, huggingface
from foundry.export.exportable import tokenizer_problems
from foundry.export.gguf_parity import prove_gguf
from foundry.export.hostile import HOSTILE, own_texts
from foundry.export.llamacpp import prove_llamacpp
from foundry.export.parity import _prove_ids, load_transformers
from foundry.export.settings_parity import prove_settings
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer

LLAMA_CPP = importlib.util.find_spec("xllamacpp") is not None
with_llama_cpp = pytest.mark.skipif(
    not LLAMA_CPP, reason="xllamacpp is not installed (pip install foundry-lm[llamacpp])"
)
REASONING = ["<think>", "</think>"]
ODD = ["a b", " lead", "trail ", "\n\n", "\t", "é", "e\u0301", "水", "🙂🙂", "a,b", 'q"q', "x" * 300]
NESTED = ["th", "the", "q<|tool|>", "<|tool|>", "wthey", "\nand", "\u200b", "A\u00a0B"]


@pytest.fixture
def exported(make_model, clean, tmp_path):
    """(symbols, other parameters of the tokenizer) → (model, tokenizer, folder with hf/ and m.gguf)."""

    def make(symbols, **params):
        texts = [row["text"] for rows in read_clean(clean / "train", ["text"]) for row in rows]
        params = TokenizerParams(**{"vocab_size": 420, "user_symbols": symbols, **params})
        train_tokenizer(texts, params, tmp_path / "tokenizer.model")
        tokenizer = Tokenizer(tmp_path / "tokenizer.model")
        shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 32, "max_seq_len": 32}
        model = make_model(ModelConfig(vocab_size=420, **shape))
        export_huggingface(model, tokenizer, tmp_path / "hf")
        export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
        return model, tokenizer, tmp_path

    return make


def prove_all(model, tokenizer, folder):
    proof = _prove_ids(load_transformers(folder / "hf")[1], tokenizer, [])
    assert proof.strings == len(HOSTILE) + len(own_texts(tokenizer)) and proof.of_the_vocabulary > 100
    prove_settings(folder / "hf", *load_transformers(folder / "hf"), model, tokenizer)
    prove_gguf(folder / "m.gguf", "f32", model.cfg, tokenizer, folder / "hf/model.safetensors")
    if LLAMA_CPP:
        done = prove_llamacpp({"f32": folder / "m.gguf"}, folder, model, tokenizer, [], [[1, 300]], [], 1e-4)
        assert done.token_ids.strings == proof.strings


@pytest.mark.parametrize("symbols", [REASONING, ODD, NESTED], ids=["reasoning", "odd", "nested"])
def test_every_user_symbol_has_the_same_ids_in_all_engines(exported, symbols):
    model, tokenizer, folder = exported(symbols)
    for symbol in symbols:
        (i,) = tokenizer.encode(symbol)
        assert tokenizer.is_user_defined(i) and tokenizer.text_of(i) == symbol
    prove_all(model, tokenizer, folder)


def test_the_proof_has_every_symbol_by_itself_in_words_at_spaces_doubled_and_beside_the_others(exported):
    _, tokenizer, _ = exported(REASONING)
    texts = set(own_texts(tokenizer))
    a, b = REASONING
    assert {a, f"wo{a}rd", f"a {a} b", f" {a}", f"{a} ", f"{a}{a}", f"x\n{a}y", a + b, b + a, f"{a} {b}"} <= texts
    assert {"<s>", "wo</s>rd", "<|im_end|><|im_end|>", f"<|im_end|>{a}"} <= texts
    every = "".join(tokenizer.text_of(i) for i in range(tokenizer.vocab_size))
    assert every == "".join(
        t for t in own_texts(tokenizer)[-4::2]
    )  # two runs of up to 256 pieces, each in two spellings


@pytest.mark.parametrize("mistake", ["special", "normal"])
def test_a_symbol_that_only_one_engine_cuts_out_fails_the_proof(exported, monkeypatch, mistake):
    """Symbols were once exported as ordinary pieces, which transformers and llama.cpp merge otherwise or not at all."""
    added = huggingface._added
    if mistake == "special":
        monkeypatch.setattr(huggingface, "_added", lambda text, special: added(text, True))
    else:
        monkeypatch.setattr(huggingface, "user_tokens", lambda tokenizer: {})
    _, tokenizer, folder = exported(REASONING)
    with pytest.raises(ExportError, match=r"token ids differ .*think>.* in transformers"):
        _prove_ids(load_transformers(folder / "hf")[1], tokenizer, [])


REFUSED = {
    "meaning of its own": ["<|end|>"],
    "overlaps the control symbol": ["s>"],
    "engines cut differently": ["ß1", "1äö"],
}


@pytest.mark.parametrize("rule", REFUSED)
def test_a_symbol_is_refused_only_if_the_engines_would_not_agree_on_it(exported, monkeypatch, rule, tmp_path):
    symbols = REFUSED[rule]
    assert any(rule in p for p in tokenizer_problems("bpe", True, symbols))
    with pytest.raises(ExportError, match=rf"tokenizer\.user_symbols has .*{rule}"):
        exported(symbols)
    monkeypatch.setattr(huggingface, "refuse", lambda problems: None)
    model, tokenizer, folder = exported(symbols)
    different = []
    for engine in (
        lambda: _prove_ids(load_transformers(folder / "hf")[1], tokenizer, []),
        lambda: prove_llamacpp({"f32": folder / "m.gguf"}, folder, model, tokenizer, [], [[1, 300]], [], 1e-4),
    ):
        try:
            engine()
        except ExportError as e:
            different.append(str(e))
    assert different or (not LLAMA_CPP and rule != "overlaps the control symbol")
    assert all("token ids differ" in d for d in different)


@with_llama_cpp
def test_a_name_that_llama_cpp_gives_a_meaning_does_not_open(exported):
    model, tokenizer, folder = exported([])
    export_gguf(model, tokenizer, folder / "m.gguf", "f32", "our-phi-3")
    with pytest.raises(ExportError, match=r"llama\.cpp died"):
        prove_llamacpp({"f32": folder / "m.gguf"}, folder, model, tokenizer, [], [[1, 300]], [], 1e-4)


MATRIX = [
    {"split_digits": False},
    {"whitespace_pieces": False},
    {"split_digits": False, "whitespace_pieces": False, "character_coverage": 1.0},
    {"character_coverage": 0.98},
    {"character_coverage": 1.0, "user_symbols": ["  ", "\n", "12", "<think>"]},
    {"split_digits": False, "user_symbols": ["0", "99"]},
]


@pytest.mark.parametrize("params", MATRIX, ids=str)
def test_every_tokenizer_that_the_parameters_allow_is_proved_or_refused(exported, params):
    symbols = params.get("user_symbols", [])
    if problems := tokenizer_problems("bpe", True, symbols):
        with pytest.raises(ExportError) as refused:
            exported(**{"symbols": symbols, **params})
        assert all(p in str(refused.value) for p in problems)
    else:
        prove_all(*exported(**{"symbols": symbols, **params}))
