"""Adapters: they begin as their base, belong to one base, and are the same function in PEFT and after merging."""

import json

import pytest
import torch

from foundry.config import DataError, ModelConfig
from foundry.models import MiniLLM, TrainingFacts, load_trained_model, save_model
from foundry.models.adapter import Adapter, adapt, blank_like, merged, rounded, trained_parameters
from foundry.models.adapter_files import load_adapted, read_adapter, save_adapter
from foundry.models.files import weights_sha256

CFG = ModelConfig(vocab_size=400, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=32)
FACTS = TrainingFacts(fingerprint="f", tokenizer_sha256="t", index_sha256="i", steps=1, tokens=2)
ROWS = (4, 5)
TOKENS = torch.arange(60).view(2, 30) % 17 + 3


def base(seed=0, **changes):
    """A model whose blocks do something, and whose rows 4 and 5 occur in TOKENS."""
    torch.manual_seed(seed)
    return MiniLLM(CFG.model_copy(update={"zero_init": False, **changes})).eval()


def trained(model, seed=1):
    """Gives every trained parameter of an adapted model other values, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(torch.empty_like(p).normal_(std=0.1, generator=generator))
    return model


def merge(adapter, base):
    return merged(load_adapted(adapter, base)[0])


@pytest.fixture
def folders(tmp_path):
    """(the base's folder, the adapter's folder, the adapted model)."""
    save_model(tmp_path / "base", base(), FACTS)
    model, facts = load_trained_model(tmp_path / "base")
    adapt(model, Adapter(4, 12.0, ROWS), 7)
    trained(model)
    save_adapter(tmp_path / "adapter", model, facts.weights_sha256, FACTS)
    return tmp_path / "base", tmp_path / "adapter", model


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_adapter_changes_no_bit_of_any_logit(tied):
    model = base(tie_embeddings=tied)
    before = model(TOKENS)[0]
    adapt(model, Adapter(4, 12.0, ROWS), 7)
    assert torch.equal(model(TOKENS)[0], before)
    assert not torch.equal(trained(model)(TOKENS)[0], before)


def test_only_factors_and_marker_rows_are_trained_and_the_frozen_rest_has_no_gradient():
    model = base()
    count = sum(p.numel() for p in model.parameters())
    adapt(model, Adapter(4, 12.0, ROWS), 7)
    loss, _ = model.summed_loss(TOKENS, TOKENS, chunk=64)
    loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == set(trained_parameters(model)) and len(with_gradient) == 2 * 7 * 2 + 1
    assert sum(p.numel() for p in trained_parameters(model).values()) < 0.12 * count
    assert model.tok_embeddings.rows.grad.abs().min(1).values.gt(0).all()


def test_the_gradient_is_that_of_the_full_weights_through_the_factors():
    """dA = s Bᵀ dW and dB = s dW Aᵀ, with dW of the merged model."""
    model = base()
    adapt(model, Adapter(4, 12.0, ROWS), 7)
    trained(model)
    whole = merged(model)
    for m in (model, whole):
        m.summed_loss(TOKENS, TOKENS, chunk=64)[0].backward()
    for i, block in enumerate(whole.layers):
        mine, full = model.layers[i].ffn.w_up, block.ffn.w_up.weight.grad
        assert torch.allclose(mine.lora_A.grad, 3.0 * mine.lora_B.mT @ full, rtol=1e-4, atol=1e-4)
        assert torch.allclose(mine.lora_B.grad, 3.0 * full @ mine.lora_A.mT, rtol=1e-4, atol=1e-4)
    assert torch.allclose(model.tok_embeddings.rows.grad, whole.tok_embeddings.weight.grad[list(ROWS)], atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_mistake_15_a_merged_saved_and_loaded_model_has_the_adapters_logits_and_is_still_tied(tmp_path, weights, tied):
    model = base(tie_embeddings=tied)
    adapt(model, Adapter(4, 12.0, ROWS, weights), 7)
    trained(model)
    save_model(tmp_path / "merged", merged(model), FACTS)
    again, _ = load_trained_model(tmp_path / "merged")
    assert torch.equal(again(TOKENS)[0], model(TOKENS)[0])
    assert (again.output is None) is tied
    if tied:  # the trained rows are those of the head as well
        assert again.head_weight is again.tok_embeddings.weight
        assert torch.equal(again.head_weight[list(ROWS)], model.tok_embeddings.rows)


def test_int8_matrices_are_rounded_to_half_a_step_and_take_a_quarter_of_the_memory():
    weight = torch.randn(48, 64)
    codes, steps = rounded(weight)
    assert ((codes.float() * steps - weight).abs() <= steps / 2 * 1.0001).all()
    model, plain = base(), base()
    adapt(model, Adapter(1, 1.0, (), "int8"), 7)
    adapt(plain, Adapter(1, 1.0, ()), 7)

    def frozen(m):
        tensors = [m.layers[0].ffn.w_up.base] if m.layers[0].ffn.w_up.base is not None else []
        tensors += list(m.layers[0].ffn.w_up.buffers())
        return sum(t.numel() * t.element_size() for t in tensors)

    assert frozen(model) < 0.27 * frozen(plain)
    assert not torch.equal(model(TOKENS)[0], plain(TOKENS)[0])
    assert torch.allclose(model(TOKENS)[0], plain(TOKENS)[0], atol=0.05)


def test_a_blank_model_takes_the_weights_of_an_adapted_one():
    model = base()
    adapt(model, Adapter(4, 12.0, ROWS, "int8"), 7)
    trained(model)
    other = blank_like(model)
    assert weights_sha256(other) != weights_sha256(model)
    other.load_state_dict(model.state_dict())
    assert weights_sha256(other) == weights_sha256(model)
    assert torch.equal(other.eval()(TOKENS)[0], model(TOKENS)[0])


def test_two_adapters_at_once_are_refused():
    model = base()
    adapt(model, Adapter(4, 12.0), 7)
    with pytest.raises(ValueError, match="merge it first"):
        adapt(model, Adapter(4, 12.0), 7)


# files


def test_an_adapter_comes_back_from_disk_and_merges_into_its_base(folders):
    base_folder, adapter_folder, model = folders
    again, record, facts = load_adapted(adapter_folder, base_folder)
    assert torch.equal(again(TOKENS)[0], model(TOKENS)[0])
    assert record.base_sha256 == facts.weights_sha256 and record.facts == FACTS
    whole = merge(adapter_folder, base_folder)
    assert whole.adapter is None and torch.equal(whole(TOKENS)[0], model(TOKENS)[0])


def test_mistake_17_another_base_and_changed_files_are_refused(folders, tmp_path):
    base_folder, adapter_folder, _ = folders
    save_model(tmp_path / "other", base(seed=3), FACTS)
    with pytest.raises(DataError, match="give the base that it was trained on"):
        merge(adapter_folder, tmp_path / "other")
    weights = adapter_folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match="was changed after training"):
        merge(adapter_folder, base_folder)
    weights.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_adapter(adapter_folder)


def test_mistake_17_an_adapter_of_int8_weights_is_merged_into_the_rounded_ones(tmp_path):
    """Merged onto the exact base it would be another model than the one that was trained and measured."""
    save_model(tmp_path / "base", base(), FACTS)
    model, facts = load_trained_model(tmp_path / "base")
    adapt(model, Adapter(4, 12.0, ROWS, "int8"), 7)
    trained(model)
    save_adapter(tmp_path / "adapter", model, facts.weights_sha256, FACTS)
    whole = merge(tmp_path / "adapter", tmp_path / "base")
    assert torch.equal(whole(TOKENS)[0], model(TOKENS)[0])
    exact = base()
    adapt(exact, Adapter(4, 12.0, ROWS), 7)
    exact.load_state_dict(
        {**exact.state_dict(), **{k: v for k, v in model.state_dict().items() if k in trained_parameters(model)}}
    )
    assert not torch.equal(merged(exact)(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_mistake_16_peft_reads_the_folder_and_computes_the_merged_models_logits(tmp_path, tokenizer, tied):
    """alpha / rank = 3, where alpha / sqrt(rank) is 6, alpha 12 and no scale 1: only one of them fits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from foundry.export.huggingface import export_huggingface

    model = base(tie_embeddings=tied)
    export_huggingface(model, tokenizer, tmp_path / "hf")
    before = model(TOKENS)[0]
    adapt(model, Adapter(4, 12.0, ROWS), 7)
    trained(model)
    save_adapter(tmp_path / "adapter", model, "0" * 64, FACTS)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] is False and config["lora_alpha"] / config["r"] == 3.0
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), tmp_path / "adapter")
    expected = merged(model)(TOKENS)[0]
    with torch.no_grad():
        seen = theirs.eval()(TOKENS).logits
        whole = theirs.merge_and_unload()(TOKENS).logits
    assert (expected - before).abs().max() > 0.1
    assert (seen - expected).abs().max() < 1e-4 and (whole - expected).abs().max() < 1e-4


def test_the_command_merges_into_a_new_folder_only_and_names_the_base(folders, tmp_path, capsys):
    from foundry.cli import main

    base_folder, adapter_folder, model = folders
    command = ["merge", str(adapter_folder), "--base", str(base_folder), "--out", str(tmp_path / "whole")]
    main(command)
    assert "in float32" in capsys.readouterr().out
    whole, facts = load_trained_model(tmp_path / "whole")
    assert torch.equal(whole(TOKENS)[0], model(TOKENS)[0]) and facts.steps == FACTS.steps
    with pytest.raises(SystemExit):
        main(command)
    assert "exists: name a new folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command[:-1], str(tmp_path / "again"), "--adapter-gguf", str(tmp_path / "adapter.gguf")])
    assert "2 rows of the embedding" in capsys.readouterr().err and not (tmp_path / "again").exists()
