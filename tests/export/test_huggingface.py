"""The folder reads back exactly or not at all; chat markers and masks are where a trainer expects them."""

import json
import subprocess
import sys

import pytest
import torch

from foundry.config import ExportError
from foundry.export import export_huggingface, import_huggingface


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    export_huggingface(model, tokenizer, tmp_path / "hf")
    return tmp_path / "hf"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0}}, "rope_parameters is"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"vocab_size": 10**6}, r"embed_tokens.weight is \[400, 64\], expected \[1000000, 64\]"),
        ({"num_hidden_layers": 3}, "layers.2.*missing, expected"),
        ({"num_key_value_heads": 3}, "n_heads must be divisible by n_kv_heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps|norm_eps"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_before_a_tensor_is_made(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ExportError, match=message):
        import_huggingface(folder)


def test_damaged_missing_and_executable_weights_are_refused(folder, model):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for wrong in (data[:100], (2**62).to_bytes(8, "little") + data[8:], b"\x80\x04cos\nsystem\n"):
        path.write_bytes(wrong)
        with pytest.raises(ExportError, match="cannot be read"):
            import_huggingface(folder)
    path.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match="cannot be read"):
        import_huggingface(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="is for None"):
        import_huggingface(folder)


def test_every_file_can_be_read_by_other_users_and_has_no_code(folder):
    names = {p.name for p in folder.iterdir()}
    tokenizer_files = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "generation_config.json", "model.safetensors", *tokenizer_files}
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in folder.iterdir())


def test_both_spellings_that_the_two_major_versions_of_transformers_read_are_there(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    assert config["dtype"] == config["torch_dtype"] == "float32"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["add_prefix_space"] is False


def test_a_conversation_becomes_markers_and_plain_text_with_only_the_answers_marked(folder, tokenizer):
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chat = [
        {"role": "user", "content": "the salt"},
        {"role": "assistant", "content": "of the oven"},
        {"role": "user", "content": "and"},
    ]
    out = hf.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=True)
    start, end = (tokenizer.id_of(m) for m in ("<|im_start|>", "<|im_end|>"))
    line = tokenizer.encode("\n")
    turns = [[start, *tokenizer.encode(f"{t['role']}\n{t['content']}"), end, *line] for t in chat]
    assert out["input_ids"] == [
        tokenizer.bos_id,
        *(i for turn in turns for i in turn),
        start,
        *tokenizer.encode("assistant\n"),
    ]
    marked = [t for t, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert marked == [*tokenizer.encode("of the oven"), end]


def test_the_folder_loads_with_no_socket_at_all(folder):
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.socket.bind = socket.getaddrinfo = no\n"
        "from foundry.export import import_huggingface\n"
        "from foundry.inference import Generator\n"
        "generator = Generator(*import_huggingface(sys.argv[1]), 'cpu')\n"
        "print(len(list(generator.generate_ids([1], max_new_tokens=9, seed=1))) > 0)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
