"""Deliberately broken exports: each is refused by what the reading program reports, and by the content of the file.

One tiny model with user symbols is exported once; every fault damages a copy of it.
"""

import importlib.util
import json
import shutil
from functools import partial

import gguf
import pytest
from safetensors.torch import load_file, save_file

from foundry.config import ExportError, ModelConfig, TokenizerParams
from foundry.data.tokens.shards import read_clean
from foundry.export import export_gguf, export_huggingface, settings_parity
from foundry.export.gguf_parity import prove_gguf
from foundry.export.llamacpp import prove_llamacpp
from foundry.export.parity import _prove_ids, load_transformers
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer

with_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="xllamacpp is not installed (pip install foundry-lm[llamacpp])",
)


@pytest.fixture(scope="module")
def exported(clean, make_model, tmp_path_factory):
    """(folder with hf/ and m.gguf, model, tokenizer); read it, damage copies."""
    folder = tmp_path_factory.mktemp("exported")
    texts = [row["text"] for rows in read_clean(clean / "train", ["text"]) for row in rows]
    symbols = ["<think>", "</think>", "a b"]
    train_tokenizer(texts, TokenizerParams(vocab_size=400, user_symbols=symbols), folder / "tokenizer.model")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 32, "max_seq_len": 32}
    model = make_model(ModelConfig(vocab_size=400, rope_theta=5000.0, norm_eps=1e-3, **shape))
    export_huggingface(model, tokenizer, folder / "hf")
    export_gguf(model, tokenizer, folder / "m.gguf", "f32", "m")
    return folder, model, tokenizer


@pytest.fixture
def broken(exported, tmp_path):
    """A copy to damage."""
    folder, model, tokenizer = exported
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy", model, tokenizer


def prove_hf(folder, model, tokenizer):
    """Everything about the folder but logits and greedy text, which the weights and config.json decide."""
    settings_parity.prove_weights(folder / "hf", model)
    hf_model, hf_tokenizer = load_transformers(folder / "hf")
    ids = _prove_ids(hf_tokenizer, tokenizer, [])
    return ids, settings_parity.prove_settings(folder / "hf", hf_model, hf_tokenizer, model, tokenizer)


def edit(name, **changes):
    """A fault: other values of top-level keys of a JSON file; REMOVED removes a key."""

    def change(folder):
        path = folder / "hf" / name
        data = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not REMOVED}))

    return change


REMOVED = object()


def deep(name, change):
    """A fault: a function that changes the content of a JSON file."""

    def apply(folder):
        path = folder / "hf" / name
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


def flag(index, **flags):
    return deep("tokenizer.json", lambda d: d["added_tokens"][index].update(flags))


def decoder_flag(index, **flags):
    return deep("tokenizer_config.json", lambda d: d["added_tokens_decoder"][str(index)].update(flags))


def swap_pieces(data):
    vocab = data["model"]["vocab"]
    a, b = [p for p, i in vocab.items() if i in (300, 301)]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def other_tokenizer(folder):
    train_tokenizer(["other text of another kind " * 40] * 9, TokenizerParams(vocab_size=300), folder / "t.model")
    (folder / "hf/tokenizer.model").write_bytes((folder / "t.model").read_bytes())


def flipped_piece(folder):
    path = folder / "hf/tokenizer.model"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"<think>", b"<thunk>", 1))


def one_bit(folder):
    path = folder / "hf/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_tensor(folder):
    path = folder / "hf/model.safetensors"
    state = load_file(path)
    state["model.norm.bias"] = state["model.norm.weight"].clone()
    save_file(state, path, {"format": "pt"})


def another_file(folder):
    (folder / "hf/special_tokens_map.json").write_text("{}")


def another_template(folder):
    (folder / "hf/chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def no_user_symbols(data):
    del data["added_tokens"][-3:]


config, generation, settings, tokens = (
    partial(edit, name) for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
)
NO_BOS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"

ROTARY = deep("config.json", lambda d: d["rope_parameters"].update(rope_theta=1e4))
MERGES = deep("tokenizer.json", lambda d: d["model"]["merges"].reverse())
NO_FALLBACK = deep("tokenizer.json", lambda d: d["model"].update(byte_fallback=False))

# name: (fault, pattern of the error, whether transformers itself shows it: then it is refused without reading the file)
FAULTS = {
    "config: end symbol": (config(eos_token_id=5), "eos_token_id", True),
    "config: end symbol missing": (config(eos_token_id=REMOVED), "eos_token_id", False),
    "config: begin symbol": (config(bos_token_id=3), "bos_token_id", True),
    "config: padding": (config(pad_token_id=0), "pad_token_id", True),
    "config: context": (config(max_position_embeddings=64), "reads back as|max_position", True),
    "config: activation": (config(hidden_act="gelu"), "hidden_act", True),
    "config: epsilon": (config(rms_norm_eps=1e-5), "reads back as|rms_norm_eps", True),
    "config: rotary base of transformers 5": (ROTARY, "rope_parameters", True),
    "config: rotary base of transformers 4": (config(rope_theta=1e4), "rope_parameters|rope_theta", False),
    "config: no rotary base of transformers 4": (config(rope_theta=REMOVED), "as it was written: rope_theta", False),
    "config: head not tied": (config(tie_word_embeddings=False), "lm_head.weight is missing", True),
    "config: key/value heads": (config(num_key_value_heads=4), "k_proj.weight", True),
    "config: biases": (config(attention_bias=True), "attention_bias", True),
    "config: biases of the feed-forward layers": (config(mlp_bias=True), "mlp_bias", True),
    "config: no cache": (config(use_cache=False), "use_cache", True),
    "config: dropout": (config(attention_dropout=0.1), "attention_dropout", True),
    "config: number format": (config(torch_dtype="float16"), "torch_dtype", False),
    "config: code of its own": (config(auto_map={"AutoConfig": "x.Y"}), "auto_map", False),
    "config: another class": (config(architectures=["MistralForCausalLM"]), "Mistral", True),
    "generation: end symbol": (generation(eos_token_id=5), "eos_token_id", True),
    "generation: only one end symbol": (generation(eos_token_id=2), "eos_token_id", True),
    "generation: begin symbol": (generation(bos_token_id=2), "bos_token_id", True),
    "generation: temperature": (generation(temperature=1.5), "temperature", True),
    "generation: greedy": (generation(do_sample=False), "do_sample", True),
    "generation: a penalty": (generation(repetition_penalty=1.2), "repetition_penalty", True),
    "generation: top_k of transformers": (generation(top_k=REMOVED), "top_k", True),
    "tokenizer_config: end symbol": (settings(eos_token="<s>"), "eos_token", True),
    "tokenizer_config: begin symbol": (settings(bos_token="</s>"), "bos_token", True),
    "tokenizer_config: unknown symbol": (settings(unk_token="<s>"), "unk_token", True),
    "tokenizer_config: padding": (settings(pad_token="</s>"), "pad_token", True),
    "tokenizer_config: template": (settings(chat_template="{{ messages }}"), "template|conversation", True),
    "tokenizer_config: template without begin symbol": (settings(chat_template=NO_BOS), "template|conversation", True),
    "tokenizer_config: no template": (settings(chat_template=REMOVED), "template", True),
    "a second template": (another_template, "template|conversation", True),
    "tokenizer_config: context": (settings(model_max_length=10**9), "model_max_length", True),
    "tokenizer_config: spaces cleaned": (
        settings(clean_up_tokenization_spaces=True),
        "clean_up|decodes|text of all",
        True,
    ),
    "tokenizer_config: prefix": (settings(add_prefix_space=True), "add_prefix_space|differ", False),
    "tokenizer_config: padding side": (settings(padding_side="left"), "padding_side", True),
    "tokenizer_config: no special end of turn": (
        settings(additional_special_tokens=["<|im_start|>"]),
        "special tokens",
        True,
    ),
    "tokenizer_config: flag of a control symbol": (decoder_flag(4, special=False), "special tokens|added tokens", True),
    "tokenizer.json: a control symbol is not special": (flag(7, special=False), "tokenizer.json only|ids differ", True),
    "tokenizer.json: a user symbol is special": (flag(-1, special=True), "tokenizer.json only|ids differ", True),
    "tokenizer.json: a user symbol strips": (flag(-1, lstrip=True), "tokenizer.json only|ids differ", True),
    "tokenizer.json: no user symbols": (deep("tokenizer.json", no_user_symbols), "tokenizer.json only", True),
    "tokenizer.json: no begin symbol": (tokens(post_processor=None), "conversation|ids differ", True),
    "tokenizer.json: merges": (MERGES, "ids differ|conversation", True),
    "tokenizer.json: pieces swapped": (deep("tokenizer.json", swap_pieces), "pieces|ids differ", True),
    "tokenizer.json: no byte fallback": (NO_FALLBACK, "conversation|ids differ", True),
    "tokenizer.json: a normaliser": (tokens(normalizer={"type": "NFKC"}), "ids differ|conversation", True),
    "tokenizer.json: a decoder": (tokens(decoder={"type": "Fuse"}), "decodes", True),
    "tokenizer.model: another": (other_tokenizer, "tokenizer.model", False),
    "tokenizer.model: one piece": (flipped_piece, "tokenizer.model", False),
    "weights: one bit": (one_bit, "differs from the source", True),
    "weights: one tensor more": (other_tensor, "norm.bias", True),
    "another file": (another_file, "special_tokens_map.json", False),
}


def test_the_export_that_the_faults_damage_is_correct(exported):
    folder, model, tokenizer = exported
    token_ids, compared = prove_hf(folder, model, tokenizer)
    assert compared.compared > 60 and token_ids.strings > 100
    assert prove_gguf(folder / "m.gguf", "f32", model.cfg, tokenizer, folder / "hf/model.safetensors").tensors == 11
    assert len(FAULTS) + len(GGUF_FAULTS) > 33


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_folder_is_refused(broken, monkeypatch, name):
    folder, model, tokenizer = broken
    fault, expected, seen_by_transformers = FAULTS[name]
    fault(folder)
    with pytest.raises(ExportError, match=expected):
        prove_hf(folder, model, tokenizer)
    if seen_by_transformers and not name.startswith("weights"):
        monkeypatch.setattr(settings_parity, "prove_weights", lambda *args: None)
        monkeypatch.setattr(settings_parity, "_same_files", lambda *args: 0)
        with pytest.raises(ExportError, match=r"transformers|token ids differ"):
            prove_hf(folder, model, tokenizer)


def rewrite(path, **changes):
    """Writes a GGUF again with other values of keys (two underscores stand for a dot in a key); None removes a key."""
    reader = gguf.GGUFReader(path)
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or (name in changes and changes[name] is None):
            continue
        value = field.contents()
        if name in changes:
            value = changes[name](value) if callable(changes[name]) else changes[name]
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for name, value in changes.items():
        if name not in reader.fields and value is not None:
            writer.add_string(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def at(index, value):
    return lambda values: [*values[:index], value, *values[index + 1 :]]


GGUF_FAULTS = {
    "end symbol": ({"tokenizer__ggml__eos_token_id": 5}, "eos_token_id", True),
    "begin symbol": ({"tokenizer__ggml__bos_token_id": 2}, "bos_token_id", True),
    "end of turn": ({"tokenizer__ggml__eot_token_id": 3}, "eot_token_id", True),
    "unknown symbol": ({"tokenizer__ggml__unknown_token_id": 3}, "unknown_token_id", False),
    "no begin symbol is added": ({"tokenizer__ggml__add_bos_token": False}, "add_bos_token", True),
    "an end symbol is added": ({"tokenizer__ggml__add_eos_token": True}, "add_eos_token", True),
    "a space is added": ({"tokenizer__ggml__add_space_prefix": True}, "add_space_prefix", True),
    "template": ({"tokenizer__chat_template": "{{ messages }}"}, "chat_template", True),
    "no template": ({"tokenizer__chat_template": None}, "chat_template is missing", True),
    "context": ({"llama__context_length": 64}, "context_length", True),
    "vocabulary": ({"tokenizer__ggml__model": "gpt2"}, "tokenizer.ggml.model", True),
    "a control symbol is a piece": (
        {"tokenizer__ggml__token_type": at(4, 1)},
        "token_type reads back as 1 at token 4",
        False,
    ),
    "a control symbol is a user symbol": ({"tokenizer__ggml__token_type": at(5, 4)}, "token_type", True),
    "a user symbol is a piece": (
        {"tokenizer__ggml__token_type": at(19, 1)},
        "token_type reads back as 1 at token 19",
        True,
    ),
    "a byte is a piece": ({"tokenizer__ggml__token_type": at(30, 1)}, "token_type", False),
    "a piece": ({"tokenizer__ggml__tokens": at(390, "qqqq")}, "tokens reads back as 'qqqq' at token 390", True),
    "a score": ({"tokenizer__ggml__scores": at(300, -500.0)}, "scores reads back", False),
    "rotary base": ({"llama__rope__freq_base": 1e4}, "freq_base", True),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": 1e-5}, "epsilon", True),
    "rope scaling": ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type = yarn is not part", False),
    "whitespace is removed": ({"tokenizer__ggml__pre": "llama3"}, "tokenizer.ggml.pre", False),
}


@pytest.mark.parametrize("name", GGUF_FAULTS)
def test_a_broken_gguf_is_refused(broken, name):
    folder, model, tokenizer = broken
    changes, expected, _ = GGUF_FAULTS[name]
    rewrite(folder / "m.gguf", **changes)
    with pytest.raises(ExportError, match=expected):
        prove_gguf(folder / "m.gguf", "f32", model.cfg, tokenizer, folder / "hf/model.safetensors")


def test_a_gguf_that_is_only_written_again_is_correct(broken):
    folder, model, tokenizer = broken
    rewrite(folder / "m.gguf")
    prove_gguf(folder / "m.gguf", "f32", model.cfg, tokenizer, folder / "hf/model.safetensors")


@with_llama_cpp
@pytest.mark.parametrize("name", [name for name, (*_, seen) in GGUF_FAULTS.items() if seen])
def test_llama_cpp_itself_shows_a_broken_gguf(broken, name):
    folder, model, tokenizer = broken
    rewrite(folder / "m.gguf", **GGUF_FAULTS[name][0])
    with pytest.raises(ExportError, match=r"llama\.cpp"):
        prove_llamacpp({"f32": folder / "m.gguf"}, folder, model, tokenizer, [], [[1, 300, 301]], [], 1e-4)
