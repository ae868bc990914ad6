"""The proof of every setting beside the weights: what transformers and llama.cpp have loaded equals the source.

A wrong end symbol, chat template or context length loads without a warning and changes no logit. So the program that
reads a setting is asked for it, and the answer is compared with values that come from the model's configuration and the
SentencePiece model, not from the functions that wrote the files. In the end the files themselves are compared with what
those functions write, so that a setting that no program reports cannot differ either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foundry.config import ExportError, ModelConfig
from foundry.config.corpus import CHAT_MARKERS
from foundry.export.huggingface import (
    generation_config,
    import_huggingface,
    model_config,
    tokenizer_config,
    tokenizer_json,
)
from foundry.export.llamacpp_child import ServerSettings
from foundry.export.proof import SettingsProof, WeightsProof
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import CHAT_TEMPLATE
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID, UNK_ID
from foundry.utils.files import read_json, sha256_file

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
CHAT = (
    {"role": "system", "content": "the salt"},
    {"role": "user", "content": "of the  oven?\n12"},
    {"role": "assistant", "content": "and the river."},
    {"role": "user", "content": ""},
)


def prove_settings(
    folder: Path, hf_model: Any, hf_tokenizer: Any, model: MiniLLM, tokenizer: Tokenizer
) -> SettingsProof:
    """Compares what transformers loaded from the folder, and the folder's files, with the source.

    Args:
        hf_model, hf_tokenizer: as transformers loaded them.

    Raises:
        ExportError: naming the first setting that differs, what was loaded and what was expected.
    """
    import tokenizers  # with transformers

    cfg = model.cfg
    compared = 0
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for what, (seen, right) in {
        **_model_settings(hf_model, cfg, tokenizer),
        **_tokenizer_settings(hf_tokenizer, plain, cfg, tokenizer),
    }.items():
        same(f"transformers loads {what}", seen, right)
        compared += 1
    compared += _same_files(folder, cfg, tokenizer)
    return SettingsProof(compared=compared)


def _same_files(folder: Path, cfg: ModelConfig, tokenizer: Tokenizer) -> int:
    """Compares each file with what was written, and refuses other files; returns the number of top-level JSON keys."""
    # A chat_template.jinja, for example, would replace the template of tokenizer_config.json.
    if extra := sorted(p.name for p in folder.iterdir() if p.name not in FILES):
        raise ExportError(f"{folder.name}/{extra[0]} is not part of an export")
    if sha256_file(folder / "tokenizer.model") != tokenizer.sha256:
        raise ExportError(f"{folder.name}/tokenizer.model is not the trained tokenizer")
    compared = 0
    for name, written in {
        "config.json": model_config(cfg),
        "generation_config.json": generation_config(tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer, cfg.max_seq_len),
        "tokenizer.json": tokenizer_json(tokenizer),
    }.items():
        seen = read_json(folder / name, "a file of the export", ExportError)
        if seen != written:
            keys = sorted(k for k in {*seen, *written} if seen.get(k) != written.get(k))
            raise ExportError(f"{folder.name}/{name} is not as it was written: {', '.join(keys)}")
        compared += len(written)
    return compared


def prove_weights(folder: Path, model: MiniLLM) -> WeightsProof:
    """Reads the folder back by `import_huggingface`; every tensor must equal the source bit for bit.

    Raises:
        ExportError: naming the first tensor or setting that differs.
    """
    back, _ = import_huggingface(folder)
    state = back.state_dict()
    for name, value in model.state_dict().items():
        if not torch.equal(state[name], value):
            off = (state[name] - value).abs().max().item()
            raise ExportError(f"the exported tensor {name} differs from the source by {off:.3g}")
    # Dropout and the initialisation matter only in training.
    if back.cfg != model.cfg.model_copy(update={"dropout": 0.0, "zero_init": True}):
        raise ExportError(f"the exported configuration reads back as {back.cfg!r}, the source is {model.cfg!r}")
    return WeightsProof(tensors=len(state))


def prove_llamacpp_settings(reported: ServerSettings, cfg: ModelConfig, tokenizer: Tokenizer) -> SettingsProof:
    """Compares what llama.cpp's server reports about a file with the source.

    Raises:
        ExportError: naming the first setting that differs.
    """
    props, meta = reported.props, reported.meta
    settings = {
        "the chat template": (props["chat_template"], CHAT_TEMPLATE),
        "the begin symbol": (props["bos_token"], "<s>"),
        "the end symbol": (props["eos_token"], "</s>"),
        "the kind of vocabulary (1: SentencePiece)": (meta["vocab_type"], 1),
        "the number of tokens": (meta["n_vocab"], cfg.vocab_size),
        "the context": (meta["n_ctx_train"], cfg.max_seq_len),
        "the width": (meta["n_embd"], cfg.dim),
        "a conversation": (reported.chat, chat_text()),
        "the tokens that end a text": (reported.ends, sorted([EOS_ID, tokenizer.id_of(CHAT_MARKERS[1])])),
        "the text of all pieces": (reported.pieces, "".join(tokenizer.text_of(i) for i in plain_pieces(tokenizer))),
    }
    for what, (seen, right) in settings.items():
        same(f"llama.cpp loads {what}", seen, right)
    return SettingsProof(compared=len(settings))


def chat_text() -> str:
    """`CHAT` as text, without the begin symbol, which llama.cpp adds by itself, and with the start of an answer."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in CHAT)
    return f"{turns}<|im_start|>assistant\n"


def plain_pieces(tokenizer: Tokenizer) -> list[int]:
    """Ids of the pieces that are text: no control symbol, no byte."""
    ids = range(tokenizer.vocab_size)
    return [i for i in ids if i != UNK_ID and not tokenizer.is_control(i) and not tokenizer.is_byte(i)]


def control_symbols(tokenizer: Tokenizer) -> list[int]:
    """Ids of the symbols that text never becomes."""
    return [i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)]


def same(what: str, seen: Any, right: Any) -> None:
    """Compares a value, its type included.

    Raises:
        ExportError: if they differ: `what`, the value and the expected one; of two dicts, the first key that differs.
    """
    if seen == right and type(seen) is type(right):
        return
    if isinstance(seen, dict) and isinstance(right, dict):
        key = next((k for k in (*right, *seen) if seen.get(k) != right.get(k)), None)
        if key is not None:
            what, seen, right = f"{what}, {key}", seen.get(key), right.get(key)
    raise ExportError(f"{what} as {_short(seen)}, the source has {_short(right)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:160]}…"


def _model_settings(hf: Any, cfg: ModelConfig, tokenizer: Tokenizer) -> dict[str, tuple[Any, Any]]:
    """{setting: (as loaded, expected)} of config.json and generation_config.json."""
    right = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.dim // cfg.n_heads,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": None,
        "architectures": ["Qwen3ForCausalLM" if cfg.qk_norm else "LlamaForCausalLM"],
    }
    # Without a sliding window and biases of the feed-forward layers: the defaults of the two classes.
    right |= {"use_sliding_window": False} if cfg.qk_norm else {"mlp_bias": False}
    out = {f"config.json, {key}": (getattr(hf.config, key, None), value) for key, value in right.items()}
    out["the class"] = (type(hf).__name__, right["architectures"][0])
    generation = hf.generation_config.to_diff_dict()
    generation.pop("transformers_version", None)
    out["generation_config.json"] = (
        generation,
        {
            "bos_token_id": BOS_ID,
            "eos_token_id": [EOS_ID, tokenizer.id_of("<|im_end|>")],
            "do_sample": True,
            "temperature": 0.8,
            "top_k": 0,
            "top_p": 0.95,
        },
    )
    return out


def _flags(added: dict[int, Any]) -> dict[int, dict[str, Any]]:
    names = ("special", "normalized", "lstrip", "rstrip", "single_word")
    return {i: {"text": token.content, **{name: getattr(token, name) for name in names}} for i, token in added.items()}


def _tokenizer_settings(hf: Any, plain: Any, cfg: ModelConfig, tokenizer: Tokenizer) -> dict[str, tuple[Any, Any]]:
    """{setting: (as loaded, expected)} of tokenizer.json and tokenizer_config.json.

    Args:
        hf: transformers' tokenizer.
        plain: the one of the library `tokenizers`, from tokenizer.json only: other programs read nothing else.
    """
    ids = range(tokenizer.vocab_size)
    control = [i for i in ids if i == UNK_ID or tokenizer.is_control(i)]
    user = {i for i in ids if tokenizer.is_user_defined(i)}
    flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    added = {i: {"text": tokenizer.text_of(i), "special": i not in user, **flags} for i in sorted([*control, *user])}
    start, end = (tokenizer.id_of(marker) for marker in CHAT_MARKERS)
    turns = [[start, *tokenizer.encode(f"{m['role']}\n{m['content']}"), end, *tokenizer.encode("\n")] for m in CHAT]
    prompt = [BOS_ID, *(i for turn in turns for i in turn), start, *tokenizer.encode("assistant\n")]
    answer = [[0] * len(turn) for turn in turns]
    for mask, m in zip(answer, CHAT, strict=True):
        if m["role"] == "assistant":
            first, size = 1 + len(tokenizer.encode("assistant\n")), len(tokenizer.encode(m["content"]))
            mask[first : first + size + 1] = [1] * (size + 1)
    same("transformers loads the chat template", hf.chat_template, CHAT_TEMPLATE)  # a broken one may raise below
    chat = hf.apply_chat_template(
        list(CHAT), return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=True
    )
    expected = [0, *(i for mask in answer for i in mask)]
    said = next(m["content"] for m in CHAT if m["role"] == "assistant")
    apart = tokenizer.encode(f"assistant\n{said}") == tokenizer.encode("assistant\n") + tokenizer.encode(said)
    settings = {
        "bos_token": ((hf.bos_token, hf.bos_token_id), ("<s>", BOS_ID)),
        "eos_token": ((hf.eos_token, hf.eos_token_id), ("</s>", EOS_ID)),
        "unk_token": ((hf.unk_token, hf.unk_token_id), ("<unk>", UNK_ID)),
        "pad_token": (hf.pad_token, None),
        "model_max_length": (hf.model_max_length, cfg.max_seq_len),
        "clean_up_tokenization_spaces": (hf.clean_up_tokenization_spaces, False),
        "padding_side": (hf.padding_side, "right"),
        "the number of tokens": (len(hf), cfg.vocab_size),
        "all special tokens": (sorted(hf.all_special_ids), sorted([UNK_ID, BOS_ID, EOS_ID, start, end])),
        "the pieces": (
            hf.get_vocab(),
            {tokenizer.text_of(i) if i in user else tokenizer.piece(i): i for i in ids},
        ),
        "the added tokens": (_flags(hf.added_tokens_decoder), added),
        "the added tokens (tokenizer.json only)": (_flags(plain.get_added_tokens_decoder()), added),
        "a conversation (tokenizer.json only)": (plain.encode(chat_text()).ids, prompt),
        "control symbols shown": (hf.decode(control), "".join(tokenizer.piece(i) for i in control)),
        "control symbols hidden": (hf.decode(control, skip_special_tokens=True), ""),
        "the text of all pieces": (
            hf.decode(plain_pieces(tokenizer), skip_special_tokens=True),
            "".join(tokenizer.text_of(i) for i in plain_pieces(tokenizer)),
        ),
        "a conversation": (list(chat["input_ids"]), prompt),
    }
    if apart:  # a user symbol may join the line end to the answer; a token then belongs to both
        settings["the answers of a conversation"] = (list(chat["assistant_masks"])[: len(expected)], expected)
    return settings
