"""The Hugging Face folder: LlamaForCausalLM (with qk_norm Qwen3ForCausalLM) and a tokenizer with SentencePiece's ids.

The weights are only renamed. What a loader needs to read the folder correctly was found by trying: both
`rope_parameters` and `rope_theta` (transformers 4 ignores the first, silently), both `dtype` and `torch_dtype`,
`PreTrainedTokenizerFast` (other classes rebuild the pipeline from their own defaults), merges in the order of
SentencePiece's scores, and `add_prefix_space: false`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from foundry.config import ExportError, ModelConfig
from foundry.config.corpus import CHAT_MARKERS
from foundry.export.exportable import model_problems, refuse, tokenizer_problems
from foundry.models import MiniLLM
from foundry.models.accounting import count_params
from foundry.models.files import without_initialisation
from foundry.models.names import tensor_names
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import CHAT_TEMPLATE
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID, UNK_ID
from foundry.utils.files import atomic_write, read_json, write_json, write_tensors


def check_finite(model: MiniLLM) -> None:
    """Refuses weights with NaN or infinity.

    Raises:
        ExportError: naming the first such tensor and how many of its numbers are not finite.
    """
    for name, value in model.state_dict().items():
        if odd := int((~torch.isfinite(value)).sum()):
            raise ExportError(
                f"{odd} of the {value.numel()} numbers of {name} are NaN or infinite: the training diverged; "
                "train again with a lower learning rate, or use an earlier checkpoint"
            )


def export_huggingface(model: MiniLLM, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes weights (float32), configuration and tokenizer files into an existing or new folder, each file atomically.

    The bytes are the same for the same model.

    Raises:
        ExportError: if model and tokenizer have different vocabularies, a weight is not finite, or
            `foundry.export.exportable` refuses the model or the tokenizer.
    """
    refuse(
        [
            *model_problems(model.cfg),
            *tokenizer_problems(tokenizer.kind, tokenizer.byte_fallback, user_tokens(tokenizer).values()),
        ]
    )
    check_finite(model)
    if model.cfg.vocab_size != tokenizer.vocab_size:
        raise ExportError(f"the model has {model.cfg.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}")
    folder = Path(folder)
    names = tensor_names(model.cfg)
    weights = {names[k]: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    write_json(folder / "config.json", model_config(model.cfg))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    with atomic_write(folder / "tokenizer.model") as f:
        f.write(tokenizer.path.read_bytes())
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, model.cfg.max_seq_len))


def model_config(cfg: ModelConfig) -> dict[str, Any]:
    """`config.json` of LlamaForCausalLM or Qwen3ForCausalLM, for transformers 4 and 5."""
    return {
        "architectures": ["Qwen3ForCausalLM" if cfg.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if cfg.qk_norm else "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Defaults of `generate`; `top_k` 0 turns off transformers' default of 50."""
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": [EOS_ID, tokenizer.id_of(CHAT_MARKERS[1])],
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 0.95,
    }


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """{id: text} of the unknown and control symbols, which text never becomes."""
    return {i: tokenizer.piece(i) for i in range(tokenizer.vocab_size) if i == UNK_ID or tokenizer.is_control(i)}


def user_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """{id: text} of `tokenizer.user_symbols`, which every engine cuts out of a text before it merges anything.

    Their spaces are not replaced: the engines look for them in the text as it was typed.
    """
    return {i: tokenizer.text_of(i) for i in range(tokenizer.vocab_size) if tokenizer.is_user_defined(i)}


def added_tokens(tokenizer: Tokenizer) -> dict[int, dict[str, Any]]:
    """{id: its entry in tokenizer.json and tokenizer_config.json} of all tokens that are not merged from characters."""
    special = {i: _added(text, True) for i, text in special_tokens(tokenizer).items()}
    return dict(sorted((special | {i: _added(text, False) for i, text in user_tokens(tokenizer).items()}).items()))


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """SentencePiece's BPE for the `tokenizers` library: with byte fallback; only spaces are rewritten, to U+2581."""
    added = added_tokens(tokenizer)
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    for i, entry in added.items():
        pieces[i] = entry["content"]  # a symbol with a space is searched for as it is typed
    normal = {p: i for i, p in enumerate(pieces) if i not in added and not tokenizer.is_byte(i)}
    # A SentencePiece model has no list of merges: every split of a piece into two pieces is a possible merge. They are
    # tried in the order of the pieces' scores.
    merges = []
    for piece, i in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                merges.append((-tokenizer.score(i), normal[left], normal[right], left, right))
    merges.sort(key=lambda m: m[:3])
    space, mark = {"String": " "}, "▁"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **entry} for i, entry in added.items()],
        "normalizer": {"type": "Replace", "pattern": space, "content": mark},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": mark}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {p: i for i, p in enumerate(pieces)},
            "merges": [[left, right] for *_, left, right in merges],
        },
    }


def _added(text: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"content": text, **flags}


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """Settings of transformers' tokenizer; llama.cpp's converter needs `add_prefix_space: false`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": context,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": list(CHAT_MARKERS),
        "added_tokens_decoder": {str(i): entry for i, entry in added_tokens(tokenizer).items()},
        "chat_template": CHAT_TEMPLATE,
    }


def import_huggingface(folder: str | Path) -> tuple[MiniLLM, Tokenizer]:
    """The inverse of `export_huggingface`: (model in evaluation mode on the CPU, tokenizer).

    Configuration and the header of the weights are compared before a tensor is allocated.

    Raises:
        ExportError: if the folder is not such an export, or its parts do not belong together.
    """
    folder = Path(folder)
    cfg = _model_config(folder)
    weights, names = folder / "model.safetensors", tensor_names(cfg)
    try:
        with safe_open(weights, "pt") as f:
            shapes = {name: f.get_slice(name).get_shape() for name in f.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as e:
        raise ExportError(f"{weights} cannot be read ({e}): `foundry verify --repair` restores it") from None
    # The file bounds what is allocated. Tensors without memory would do, too, but importing what they need takes a
    # second, so they only name what is wrong.
    fits = sum(math.prod(shape) for shape in shapes.values()) == count_params(cfg)
    with without_initialisation() if fits else torch.device("meta"):
        model = MiniLLM(cfg)
    state = model.state_dict()
    expected = {names[k]: list(v.shape) for k, v in state.items()}
    if odd := sorted(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n)):
        first = "; ".join(f"{n} is {shapes.get(n, 'missing')}, expected {expected.get(n, 'none')}" for n in odd[:3])
        raise ExportError(f"{weights} has other tensors than config.json describes: {first}")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    if tokenizer.vocab_size != cfg.vocab_size:
        raise ExportError(f"{folder}: the model has {cfg.vocab_size} tokens, tokenizer.model {tokenizer.vocab_size}")
    with safe_open(weights, "pt") as f:
        for ours, theirs in names.items():
            state[ours].copy_(f.get_tensor(theirs))  # one at a time: the model does not have to fit into memory twice
    return model.eval(), tokenizer


def _model_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    c = read_json(path, "configuration of an exported model", ExportError)
    seen = c.get("architectures") if isinstance(c, dict) else c
    if seen not in (["LlamaForCausalLM"], ["Qwen3ForCausalLM"]):
        raise ExportError(
            f"{path} is for {seen}; only LlamaForCausalLM and Qwen3ForCausalLM as Foundry exports them can be read"
        )
    try:
        cfg = ModelConfig(
            vocab_size=c["vocab_size"],
            dim=c["hidden_size"],
            n_layers=c["num_hidden_layers"],
            n_heads=c["num_attention_heads"],
            n_kv_heads=c["num_key_value_heads"],
            ffn_dim=c["intermediate_size"],
            max_seq_len=c["max_position_embeddings"],
            # transformers 5 writes only the new key when it saves a model that it trained further.
            rope_theta=(c if "rope_theta" in c else c["rope_parameters"])["rope_theta"],
            norm_eps=c["rms_norm_eps"],
            tie_embeddings=c["tie_word_embeddings"],
            qk_norm=seen == ["Qwen3ForCausalLM"],
        )
    except KeyError as e:
        raise ExportError(f"{path} has no key {e.args[0]}: it is not an export of Foundry") from None
    except ValueError as e:
        raise ExportError(f"{path} describes a model that Foundry cannot build: {e}") from None
    # What MiniLLM does not support (scaled rotary embedding, biases, another activation) must not be ignored; a trainer
    # of transformers changes these keys, which say nothing about the model.
    free = ("dtype", "torch_dtype", "use_cache", "pad_token_id")
    if odd := [k for k, v in model_config(cfg).items() if k in c and c[k] != v and k not in free]:
        raise ExportError(f"{path}: {odd[0]} is {c[odd[0]]!r}, only {model_config(cfg)[odd[0]]!r} can be read")
    if c.get("rope_scaling"):
        raise ExportError(f"{path}: rope_scaling is {c['rope_scaling']!r}, which MiniLLM does not support")
    return cfg
