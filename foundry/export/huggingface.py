"""The Hugging Face folder: LlamaForCausalLM by renaming alone, and a tokenizer.json that gives SentencePiece's ids.

What decides whether a loader reads it right was found by trying: both `rope_parameters` and `rope_theta` (one major version of transformers
ignores the first, silently), both `dtype` and `torch_dtype`, `PreTrainedTokenizerFast` (other classes rebuild the pipeline from their own
defaults), merges in the order of SentencePiece's scores, `add_prefix_space: false`, and a chat template that begins with the begin symbol
and marks the assistant's turns for training.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file

from foundry.config import ExportError, ModelConfig
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import BOS_ID, CHAT_MARKERS, EOS_ID, UNK_ID
from foundry.utils.files import read_json, write_json

_LAYER = {
    "attention_norm": "input_layernorm", "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn.w_gate": "mlp.gate_proj", "ffn.w_up": "mlp.up_proj",
    "ffn.w_down": "mlp.down_proj",
}  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tensor_names(cfg: ModelConfig) -> dict[str, str]:
    """{our name: Hugging Face's name} of every tensor."""
    names = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not cfg.tie_embeddings:
        names["output.weight"] = "lm_head.weight"
    for i in range(cfg.n_layers):
        names |= {f"layers.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight" for ours, theirs in _LAYER.items()}
    return names


def export_huggingface(model: MiniLLM, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes weights (float32), configuration and tokenizer files into an existing or new folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, names = model.state_dict(), tensor_names(model.cfg)
    weights = {names[k]: v.detach().float().cpu().contiguous() for k, v in state.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    os.chmod(folder / "model.safetensors", 0o644)  # save_file makes 0600
    write_json(folder / "config.json", model_config(model.cfg))
    end = [EOS_ID, tokenizer.id_of(CHAT_MARKERS[1])]
    write_json(folder / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": end, "do_sample": True, "temperature": 0.8, "top_p": 0.95})
    shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, model.cfg.max_seq_len))


def model_config(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": cfg.vocab_size, "hidden_size": cfg.dim,
        "intermediate_size": cfg.ffn_dim, "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.head_dim, "hidden_act": "silu", "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tie_embeddings, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "initializer_range": 0.02, "use_cache": True, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": None,
        "dtype": "float32", "torch_dtype": "float32",
    }  # fmt: skip


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """{id: text} of the unknown and control symbols."""
    return {i: tokenizer.piece(i) for i in range(tokenizer.vocab_size) if i == UNK_ID or tokenizer.is_control(i)}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """SentencePiece's BPE as the `tokenizers` library reads it: spaces as U+2581, no other normalisation, bytes for what is unknown."""
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    special = special_tokens(tokenizer)
    normal = {p: i for i, p in enumerate(pieces) if i not in special and not tokenizer.is_byte(i)}
    # A SentencePiece model has no merge list: every split of a piece into two pieces is a possible merge, tried in the order of the
    # piece's score.
    merges = []
    for piece, i in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                merges.append((-tokenizer.score(i), normal[left], normal[right], left, right))
    merges.sort(key=lambda m: m[:3])
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in special.items()
    ]
    space, mark = {"String": " "}, "▁"
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": space, "content": mark},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "Replace", "pattern": {"String": mark}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": {p: i for i, p in enumerate(pieces)},
            "merges": [[left, right] for *_, left, right in merges],
        },
    }  # fmt: skip


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    special = special_tokens(tokenizer)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False, "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "legacy": False, "model_max_length": context,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": list(CHAT_MARKERS),
        "added_tokens_decoder": {
            str(i): {"content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, t in special.items()
        },
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip


def import_huggingface(folder: str | Path) -> tuple[MiniLLM, Tokenizer]:
    """The inverse of `export_huggingface`: (model in evaluation mode on the CPU, tokenizer).

    Raises:
        ExportError: if the folder is not such an export.
    """
    folder = Path(folder)
    c = read_json(folder / "config.json", "configuration of an exported model", ExportError)
    if c.get("architectures") != ["LlamaForCausalLM"]:
        raise ExportError(f"{folder} holds {c.get('architectures')}, this reads LlamaForCausalLM as Foundry exports it")
    cfg = ModelConfig(
        vocab_size=c["vocab_size"], dim=c["hidden_size"], n_layers=c["num_hidden_layers"], n_heads=c["num_attention_heads"],
        n_kv_heads=c["num_key_value_heads"], ffn_dim=c["intermediate_size"], max_seq_len=c["max_position_embeddings"],
        rope_theta=c["rope_theta"], norm_eps=c["rms_norm_eps"], tie_embeddings=c["tie_word_embeddings"],
    )  # fmt: skip
    tensors = load((folder / "model.safetensors").read_bytes())
    names = tensor_names(cfg)
    if set(tensors) != set(names.values()):
        odd = sorted(set(tensors) ^ set(names.values()))
        raise ExportError(f"{folder / 'model.safetensors'} has other tensors than its config.json says: {', '.join(odd[:3])} …")
    model = MiniLLM(cfg)
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()})
    return model.eval(), Tokenizer(folder / "tokenizer.model")
