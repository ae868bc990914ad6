"""An export is written only when it equals its source; each classic mistake makes the proof fail."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from example_records import example_cleaning, example_evaluation
from safetensors.torch import load_file, save_file

from foundry.config import Export, ExportError, ModelConfig
from foundry.export import export, export_gguf, export_huggingface, import_huggingface, prove, verify_export
from foundry.export.gguf_file import interleave
from foundry.export.gguf_parity import prove_gguf
from foundry.export.manifest import ChangedExportError
from foundry.export.proof import LlamaCppMissing, WeightsProof
from foundry.models import MiniLLM, ModelFacts
from foundry.utils.evaluation_report import CompressedSize

TEXTS = ["The salt water and the ancient city.  Two spaces.\nA line.", "Boil 12 onions; add 3 cups of 水."]
PROMPTS = ["The", "Boil "]


@pytest.fixture
def written(model, tokenizer, tmp_path):
    export_huggingface(model, tokenizer, tmp_path / "hf")
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f16", "m")
    return tmp_path


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch):
    """What is proved here is transformers and the read-back; `test_llamacpp.py` proves the third engine."""
    monkeypatch.setattr("foundry.export.parity.prove_llamacpp", lambda *args: LlamaCppMissing(why="not run here"))


def proved(folder, model, tokenizer, kind="f16"):
    return prove(folder / "hf", {kind: folder / "m.gguf"}, model, tokenizer, TEXTS, PROMPTS, 1e-4)


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_an_export_equals_its_source(model, tokenizer, tmp_path, kind):
    export_huggingface(model, tokenizer, tmp_path / "hf")
    export_gguf(model, tokenizer, tmp_path / "m.gguf", kind, "m")
    proof = proved(tmp_path, model, tokenizer, kind)
    assert proof.greedy.tokens > 10 and proof.token_ids.strings > 40 and proof.gguf[kind].tensors == 20


def test_an_untied_head_is_exported_too(make_model, tokenizer, tmp_path):
    shape = {"dim": 64, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 64, "max_seq_len": 32}
    untied = make_model(ModelConfig(vocab_size=400, **shape, tie_embeddings=False))
    export_huggingface(untied, tokenizer, tmp_path / "hf")
    export_gguf(untied, tokenizer, tmp_path / "m.gguf", "f32", "m")
    proved(tmp_path, untied, tokenizer, "f32")


def test_a_model_with_qk_norm_is_exported_as_qwen3(make_model, tokenizer, tmp_path):
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "max_seq_len": 64}
    normed = make_model(ModelConfig(vocab_size=400, **shape, qk_norm=True, zero_init=False))
    export_huggingface(normed, tokenizer, tmp_path / "hf")
    export_gguf(normed, tokenizer, tmp_path / "m.gguf", "f16", "m")
    proof = proved(tmp_path, normed, tokenizer)
    assert proof.gguf["f16"].tensors == 24 and proof.greedy.tokens > 10
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert import_huggingface(tmp_path / "hf")[0].cfg.qk_norm


@pytest.mark.parametrize("options", [{"logit_softcap": 20.0}, {"sliding_window": 8}])
def test_what_no_class_of_transformers_computes_is_refused(make_model, tokenizer, tmp_path, options):
    odd = make_model(ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, **options))
    (key,) = options
    with pytest.raises(ExportError, match=rf"model\.{key} .* train with 0"):
        export_huggingface(odd, tokenizer, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def swap_heads(folder):
    path = folder / "hf" / "model.safetensors"
    state = load_file(path)
    q = state["model.layers.0.self_attn.q_proj.weight"]
    state["model.layers.0.self_attn.q_proj.weight"] = torch.cat((q[16:32], q[:16], q[32:]))
    save_file(state, path, {"format": "pt"})


def one_bit(folder):
    path = folder / "hf" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def with_prefix(normalizer):
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, normalizer]}


MISTAKES = {
    "two heads swapped": (swap_heads, "q_proj|differs"),
    "one bit of a weight": (one_bit, "differs"),
    "another epsilon": (lambda f: edit(f / "hf/config.json", lambda c: c.update(rms_norm_eps=1e-5)), "reads back as"),
    "rope_parameters in conflict": (
        lambda f: edit(f / "hf/config.json", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
        "rope_parameters is|logits differ",
    ),
    "another activation": (
        lambda f: edit(f / "hf/config.json", lambda c: c.update(hidden_act="gelu")),
        "hidden_act is 'gelu'",
    ),
    "no byte fallback": (
        lambda f: edit(f / "hf/tokenizer.json", lambda c: c["model"].update(byte_fallback=False)),
        "token ids differ|decodes",
    ),
    "a dummy prefix": (
        lambda f: edit(f / "hf/tokenizer.json", lambda c: c.update(normalizer=with_prefix(c["normalizer"]))),
        "token ids differ",
    ),
    "merges in another order": (
        lambda f: edit(f / "hf/tokenizer.json", lambda c: c["model"]["merges"].reverse()),
        "token ids differ",
    ),
    "no begin symbol": (
        lambda f: edit(f / "hf/tokenizer.json", lambda c: c.update(post_processor=None)),
        "token ids differ",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_hugging_face_folder_fails_the_proof(written, model, tokenizer, name):
    mistake, message = MISTAKES[name]
    mistake(written)
    with pytest.raises(ExportError, match=message):
        proved(written, model, tokenizer)


CONFIGURED = {
    "rms_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": True,
    "max_position_embeddings": 64,  # the right value: guards against a proof that refuses everything
}


@pytest.mark.parametrize("key", CONFIGURED)
def test_the_logits_show_a_wrong_configuration_without_other_checks(written, model, tokenizer, monkeypatch, key):
    """transformers runs what config.json says, so the comparison of logits must fail without the checks before it."""
    monkeypatch.setattr("foundry.export.parity.prove_weights", lambda *args: WeightsProof(tensors=0))
    edit(written / "hf/config.json", lambda c: c.update({key: CONFIGURED[key]}))
    if key == "max_position_embeddings":
        proved(written, model, tokenizer)
        return
    with pytest.raises(ExportError, match=r"logits differ by|transformers loads hf with .*bias"):
        proved(written, model, tokenizer)


def test_the_logits_show_swapped_heads_and_another_rotary_layout_without_other_checks(
    written, model, tokenizer, monkeypatch
):
    monkeypatch.setattr("foundry.export.parity.prove_weights", lambda *args: WeightsProof(tensors=0))
    path = written / "hf" / "model.safetensors"
    original = path.read_bytes()
    swap_heads(written)
    with pytest.raises(ExportError, match="logits differ by"):
        proved(written, model, tokenizer)
    path.write_bytes(original)
    state = load_file(path)
    for name in [n for n in state if "q_proj" in n or "k_proj" in n]:
        state[name] = torch.from_numpy(interleave(state[name].numpy(), state[name].shape[0] // 16))
    save_file(state, path, {"format": "pt"})
    with pytest.raises(ExportError, match="logits differ by"):
        proved(written, model, tokenizer)


def test_the_greedy_text_shows_other_weights_without_other_checks(written, model, tokenizer):
    from foundry.export.greedy import continuation
    from foundry.export.parity import _prove_greedy, load_transformers
    from foundry.inference import Generator

    hf, _ = load_transformers(written / "hf")
    generator = Generator(model, tokenizer, "cpu")
    continuations = [continuation(generator, prompt) for prompt in PROMPTS]
    assert _prove_greedy(hf, generator, continuations, 1e-4).tokens > 10
    with torch.no_grad():
        hf.model.norm.weight.mul_(-1)
    with pytest.raises(ExportError, match="greedy continuations of 'The' differ at token 0"):
        _prove_greedy(hf, generator, continuations, 1e-4)


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
@pytest.mark.parametrize("mistake", ["not permuted", "norm", "scores", "space prefix", "another type"])
def test_a_mistake_in_the_gguf_fails_the_proof(written, model, tokenizer, monkeypatch, mistake, kind):
    if mistake == "not permuted":
        monkeypatch.setattr("foundry.export.gguf_file.interleave", lambda w, heads: w)
    elif mistake == "norm":
        wrong = MiniLLM(model.cfg)
        wrong.load_state_dict({k: v + (k == "norm.weight") * 1e-3 for k, v in model.state_dict().items()})
        export_gguf(wrong, tokenizer, written / "m.gguf", kind, "m")
    elif mistake == "another type":
        monkeypatch.setattr("foundry.export.gguf_file.token_type", lambda tokenizer, i: gguf.TokenType.NORMAL)
    elif mistake == "scores":
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "add_token_scores",
            lambda self, scores: self.add_array("tokenizer.ggml.scores", [0.0] * len(scores)),
        )
    else:
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "add_add_space_prefix",
            lambda self, value: self.add_bool("tokenizer.ggml.add_space_prefix", True),
        )
    if mistake != "norm":
        export_gguf(model, tokenizer, written / "m.gguf", kind, "m")
    with pytest.raises(ExportError, match=r"m\.gguf: (tensor|tokenizer\.ggml)"):
        prove_gguf(written / "m.gguf", kind, model.cfg, tokenizer, written / "hf/model.safetensors")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_flipped_byte_of_a_tensor_fails_the_proof_and_names_the_tensor(written, model, tokenizer, kind):
    path = written / "m.gguf"
    export_gguf(model, tokenizer, path, kind, "m")
    prove_gguf(path, kind, model.cfg, tokenizer, written / "hf/model.safetensors")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_down.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset + tensor.n_bytes // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"m\.gguf: tensor blk\.1\.ffn_down\.weight differs"):
        prove_gguf(path, kind, model.cfg, tokenizer, written / "hf/model.safetensors")


def test_a_cut_gguf_cannot_be_read_back(written, model, tokenizer):
    path = written / "m.gguf"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(ExportError, match=r"m\.gguf cannot be read back"):
        prove_gguf(path, "f16", model.cfg, tokenizer, written / "hf/model.safetensors")


def test_interleaving_turns_halves_into_neighbours():
    rows = np.arange(16).reshape(16, 1)  # two heads of eight rows
    assert interleave(rows, 2).ravel().tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_interleaved_rotation_of_permuted_rows_gives_the_same_scores(model):
    """What llama.cpp computes from the permuted q and k equals what we compute from ours."""
    from foundry.models import apply_rotary_emb, precompute_freqs_cis

    f = precompute_freqs_cis(16, 10, 10_000.0)
    x = torch.randn(10, 64)
    block = model.layers[0].attention
    q, k = (x @ w.weight.T for w in (block.wq, block.wk))
    rq, rk = apply_rotary_emb(q.view(1, 10, 4, 16), k.view(1, 10, 2, 16), f)
    ours = torch.einsum("bthd,bshd->hts", rq[:, :, ::2], rk)

    def pairs(w, heads):
        y = (x @ torch.from_numpy(interleave(w.detach().numpy(), heads)).T).view(10, heads, 8, 2)
        return torch.view_as_real(torch.view_as_complex(y.contiguous()) * f[:, None, :]).flatten(-2)

    theirs = torch.einsum("thd,shd->hts", pairs(block.wq.weight, 4)[:, ::2], pairs(block.wk.weight, 2))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def bundle(out, model, tokenizer, **change):
    hashes = {"index_sha256": "1" * 64, "tokenizer_sha256": tokenizer.sha256, "weights_sha256": "2" * 64, **change}
    facts = ModelFacts(fingerprint="f" * 16, **hashes, steps=10, tokens=100)
    report = example_evaluation(baselines={"xz": CompressedSize(alone=2.0, given_train=1.8)})
    params = Export(model_name="tiny")
    return export(out, model, facts, tokenizer, report, example_cleaning(), TEXTS, PROMPTS, params)


@pytest.fixture
def private_umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_bundle_is_the_same_bytes_again_names_its_sources_and_has_no_code(
    model, tokenizer, tmp_path, private_umask
):
    a, b = bundle(tmp_path / "a", model, tokenizer), bundle(tmp_path / "b", model, tokenizer)
    # A server under another user reads it, whatever the umask of whoever exported it.
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").rglob("*") if p.is_dir()} == {0o755}
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").rglob("*") if p.is_file()} == {0o644}
    assert a == b and len(a.files) == 12
    verify_export(tmp_path / "a")
    card = (tmp_path / "a/hf/README.md").read_text()
    assert "CC-BY-SA-4.0" in card and "the authors" in card and "1.5000" in card and "f" * 16 in card
    assert not [p for p in (tmp_path / "a").rglob("*") if p.suffix in (".py", ".pkl", ".bin", ".pt")]


def test_parts_that_do_not_belong_together_are_refused_and_nothing_is_left(model, tokenizer, tmp_path):
    with pytest.raises(ExportError, match="not the one that the model was trained with"):
        bundle(tmp_path / "a", model, tokenizer, tokenizer_sha256="0" * 64)
    with pytest.raises(ExportError, match="is of another model"):
        bundle(tmp_path / "a", model, tokenizer, weights_sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_leaves_the_former_export(model, tokenizer, tmp_path, monkeypatch):
    bundle(tmp_path / "a", model, tokenizer)
    monkeypatch.setattr("foundry.export.gguf_file.interleave", lambda w, heads: w * 1.0)
    import foundry.export.bundle as module

    real = module.prove
    monkeypatch.setattr(module, "prove", lambda *args: (monkeypatch.undo(), real(*args)))
    with pytest.raises(ExportError, match="differs from the source"):
        bundle(tmp_path / "a", model, tokenizer)
    verify_export(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def refuse(*args):
        raise ExportError("llama.cpp died of SIGABRT")

    monkeypatch.setattr("foundry.export.parity.prove_llamacpp", refuse)
    with pytest.raises(ExportError, match="SIGABRT"):
        bundle(tmp_path / "b", model, tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_flipped_byte_a_missing_and_an_added_file_are_named(model, tokenizer, tmp_path):
    bundle(tmp_path / "a", model, tokenizer)
    for name in ("hf/model.safetensors", "hf/tokenizer.json", "hf/LICENSE", "tiny-q4_0.gguf"):
        path = tmp_path / "a" / name
        original = path.read_bytes()
        data = bytearray(original)
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ExportError, match=f"{name}: changed"):
            verify_export(tmp_path / "a")
        path.unlink()
        with pytest.raises(ExportError, match=f"{name}: missing"):
            verify_export(tmp_path / "a")
        path.write_bytes(original)
    verify_export(tmp_path / "a")
    (tmp_path / "a" / "extra.py").write_text("")
    (tmp_path / "a/hf/LICENSE").unlink()
    with pytest.raises(ChangedExportError, match=r"extra\.py: added") as error:
        verify_export(tmp_path / "a")
    assert error.value.states == {"extra.py": "added", "hf/LICENSE": "missing"}


def test_the_round_trip_through_the_folder_is_exact(written, model, tokenizer):
    back, tok = import_huggingface(written / "hf")
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    assert tok.sha256 == tokenizer.sha256
    edit(written / "hf/config.json", lambda c: c.update(architectures=["GPT2LMHeadModel"]))
    with pytest.raises(ExportError, match="GPT2LMHeadModel"):
        import_huggingface(written / "hf")


def test_transformers_loads_the_folder_with_no_network_at_all(written):
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise OSError('no network in this test')\n"
        "socket.socket.connect = no; socket.create_connection = no; socket.getaddrinfo = no\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]); m = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = t('The salt', return_tensors='pt').input_ids\n"
        "print(m.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1])\n"
        "chat = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yes'}]\n"
        "expected = '<s><|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nyes<|im_end|>\\n'\n"
        "print(t.apply_chat_template(chat, tokenize=False) == expected)\n"
    )
    assert hasattr(socket.socket, "connect")
    done = subprocess.run([sys.executable, "-c", code, str(written / "hf")], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_the_stage_imports_neither_transformers_nor_mlflow_before_its_work():
    code = "import sys, stages.export; bad = {'transformers', 'mlflow'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
