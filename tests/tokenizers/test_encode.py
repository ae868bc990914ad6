"""Encoding by words gives exactly SentencePiece's ids; where it cannot, SentencePiece encodes the text."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from foundry.config import DataError, TokenizerParams
from foundry.tokenizers import Tokenizer, encode
from foundry.tokenizers.encode import Encoder
from foundry.tokenizers.train import train_tokenizer

# Texts that are hard to encode: whitespace, scripts, combining and invisible characters, typed markers.
HARD = [
    *("", " ", "  two  spaces ", "\ttab\n\n\nlines\r\n", "    indented\n\tcode = [1, 2]", " " * 300, "\u00a0nbsp"),
    *(
        "日本語と中文混排，標点。「引用」",
        "🙂👩‍👩‍👧‍👦🇩🇪 🙂🙂",
        "e\u0301 combining é",
        "ÄÖÜß ñ ç",
        "مرحبا שלום",
        "\U0010ffff",
    ),
    *("\u200bzero\ufeffwidth", "a\x00b\x1b[0m", "<s></s><unk><|im_start|>user<|im_end|><tool>a b", "▁▁a▁b ▁ c"),
    *("1234567890123", "½ ﬁ Ａ①", "x" * 5000, "the" * 50, "don't DON'T"),
]

CHINESE = "中文是世界上使用人数最多的语言，也是中国的官方语言。北京是中华人民共和国的首都，上海是最大的城市。"


def texts_of(seed, n=300):
    rng = random.Random(seed)
    words = "the of salt water oven river king city music theory cell star stir boil add cut naïve café I'm don't"
    words = words.split()
    out = []
    for _ in range(n):
        parts = [
            rng.choice(words) + rng.choice(["", "", ",", ".", "\n", "  ", "\t"]) for _ in range(rng.randint(1, 40))
        ]
        if rng.random() < 0.3:
            parts.insert(rng.randrange(len(parts)), "".join(rng.choices(CHINESE, k=12)) + CHINESE[: rng.randint(2, 20)])
        if rng.random() < 0.3:
            parts.append(str(rng.randrange(10**6)))
        out.append(rng.choice([" ", " ", ""]).join(parts))
    return out


OPTIONS = {
    "bpe": {},
    "plain": {"split_digits": False, "whitespace_pieces": False},
    "symbols": {"user_symbols": ["<tool>", "a b", "  ", "\t", "é", "文是", "12"]},
    "unigram": {"kind": "unigram", "vocab_size": 420},
    "lossy": {"byte_fallback": False, "vocab_size": 300, "character_coverage": 0.98},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tokenizer for each group of options."""
    out = {}
    for name, options in OPTIONS.items():
        folder = tmp_path_factory.mktemp(name)
        train_tokenizer(texts_of(0), TokenizerParams(**{"vocab_size": 520, **options}), folder / "tokenizer.model")
        out[name] = Tokenizer(folder)
    return out


def assert_same(tokenizer, texts, encoder=None):
    sp = SentencePieceProcessor(model_file=str(tokenizer.path))
    ids, ends = (encoder or Encoder(tokenizer)).encode(pa.array(texts, pa.string()))
    assert [ids[a:b].tolist() for a, b in pairwise(ends)] == sp.encode(texts)


@pytest.mark.parametrize("name", OPTIONS)
def test_ids_are_those_of_sentencepiece(models, name):
    encoder = Encoder(models[name])
    assert encoder.by_words == (name in ("bpe", "plain", "symbols"))
    assert_same(models[name], HARD, encoder)
    assert_same(models[name], texts_of(1), encoder)  # words seen before and new ones
    assert_same(models[name], ["".join(texts_of(2))])


# Pieces of the vocabulary glued together in any order are the texts that most often tempt a merge across a cut.
glued = st.lists(st.integers(3, 519), max_size=30)
alphabet = "abcdethsoin .,\n\t'’0123é\u0301文中是国，。▁\x00🙂\u200d<|>im_sr"


@pytest.mark.parametrize("name", ["bpe", "plain", "symbols", "unigram"])
@given(
    pieces=st.lists(glued, max_size=4),
    letters=st.lists(st.text(alphabet, max_size=40), max_size=4),
    any_text=st.text(max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_ids_are_those_of_sentencepiece_for_any_text(models, name, pieces, letters, any_text):
    tokenizer = models[name]
    texts = ["".join(tokenizer.piece(i % tokenizer.vocab_size) for i in p).replace("▁", " ") for p in pieces]
    assert_same(tokenizer, [*texts, *letters, any_text], _kept(tokenizer))


_encoders = {}


def _kept(tokenizer):
    """One encoder for all examples, so that its cache of words is tested with them."""
    return _encoders.setdefault(tokenizer.sha256, Encoder(tokenizer))


def test_no_cut_falls_inside_a_piece(models):
    """Checked on every piece of the vocabulary."""
    for name in ("bpe", "plain", "symbols"):
        tokenizer = models[name]
        tables = encode._cut_tables(tokenizer)
        pieces = [tokenizer.piece(i).replace("▁", " ") for i in range(tokenizer.vocab_size) if not tokenizer.is_byte(i)]
        cuts = 0
        for piece in pieces:
            assert not encode._cuts(np.frombuffer(piece.encode(), np.uint8), tables)[1:].any(), piece
            data = np.frombuffer(f"{piece}, {piece}".encode(), np.uint8)
            found = encode._cuts(data, tables)
            assert all(data[i] & 0xC0 != 0x80 for i in np.flatnonzero(found))
            cuts += found[1:].sum()
        assert cuts > len(pieces)


def test_cuts_are_found_in_natural_text_of_every_script(models):
    tables = encode._cut_tables(models["bpe"])
    for text, least in ((", ".join(texts_of(3)), 0.15), (CHINESE * 3, 0.15)):
        data = np.frombuffer(text.encode(), np.uint8)
        assert encode._cuts(data, tables).sum() > least * len(text)


@pytest.mark.parametrize(
    "limits", [{"MAX_WORDS": 5}, {"SLICE_BYTES": 7}, {"MAX_WORD_BYTES": 0}, {"MAX_WORDS": 40, "SLICE_BYTES": 64}]
)
def test_the_cache_is_bounded_and_its_limits_change_no_id(models, limits, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(encode, name, value)
    encoder, texts = Encoder(models["bpe"]), texts_of(4, 60) + HARD
    for _ in range(2):
        assert_same(models["bpe"], texts, encoder)
    if limits.get("SLICE_BYTES") == 64:
        assert len(encoder._known) < 40 + 64


@pytest.mark.parametrize("limits", [{}, {"MAX_WORDS": 40, "SLICE_BYTES": 64}])
def test_threads_share_an_encoder_and_its_words(models, limits, monkeypatch):
    """The cache is filled, read and emptied by four threads at once."""
    for name, value in limits.items():
        monkeypatch.setattr(encode, name, value)
    encoder, texts = Encoder(models["bpe"]), [pa.array(texts_of(seed, 40)) for seed in range(24)]
    expected = [Encoder(models["bpe"]).encode(some) for some in texts]
    with ThreadPoolExecutor(4) as threads:
        for found, right in zip(threads.map(encoder.encode, texts), expected, strict=True):
            assert np.array_equal(found.ids, right.ids) and np.array_equal(found.starts, right.starts)


def test_arrays_may_be_slices_and_large(models):
    encoder, texts = Encoder(models["bpe"]), HARD + texts_of(5, 20)
    expected = encoder.encode(pa.array(texts[3:9]))
    for array in (pa.array(texts)[3:9], pa.array(texts, pa.large_string())[3:9]):
        assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(array), expected, strict=True))
    ids, ends = encoder.encode(pa.array([], pa.string()))
    assert len(ids) == 0 and ends.tolist() == [0]


def test_a_difference_from_sentencepiece_is_found_in_the_first_texts(models, monkeypatch):
    monkeypatch.setattr(encode, "_cuts", lambda data, tables: np.ones(len(data), bool))
    with pytest.raises(DataError, match="other ids than SentencePiece"):
        Encoder(models["bpe"]).encode(pa.array(["the water of the river"]))


def test_null_and_invalid_texts_are_refused(models):
    with pytest.raises(DataError, match="1 of 2 texts are null"):
        Encoder(models["bpe"]).encode(pa.array(["a", None]))
    broken = pa.array([b"ok", b"\xff\xfe broken"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, broken.buffers())
    for name in ("bpe", "unigram"):
        with pytest.raises(DataError, match="not UTF-8"):
            Encoder(models[name]).encode(text)


def test_sentencepiece_itself_encodes_for_a_model_that_rewrites_text(tmp_path):
    with open(tmp_path / "tokenizer.model", "wb") as f:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts_of(0)),
            model_writer=f,
            model_type="bpe",
            vocab_size=500,
            byte_fallback=True,
            minloglevel=2,
        )
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.kind == "bpe" and not tokenizer.keeps_text and not Encoder(tokenizer).by_words
    assert_same(tokenizer, HARD)
