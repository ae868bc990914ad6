"""MiniLLM equals an independent implementation, sees only earlier tokens, and counts its own parameters."""

import math
import subprocess
import sys

import pytest
import torch

from foundry.config import DataError, ModelConfig
from foundry.models import (
    CausalSelfAttention,
    FlashAttention,
    MiniLLM,
    RMSNorm,
    apply_rotary_emb,
    load_model,
    precompute_freqs_cis,
    save_model,
)
from foundry.models.accounting import count_params, train_flops_per_token

pytestmark = pytest.mark.numeric
CONFIG = ModelConfig(
    vocab_size=97, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=32, rope_theta=5000.0
)


def random_model(cfg: ModelConfig = CONFIG) -> MiniLLM:
    torch.manual_seed(0)
    model = MiniLLM(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (p.ndim == 1))
    return model.eval()


@pytest.mark.parametrize("zero_init", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_weights_have_the_spread_that_is_documented(tied, zero_init):
    """Within 3%, measured on at least 16,384 numbers per matrix (a standard error of 0.6%)."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "dim": 128, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 192}
    cfg = ModelConfig(**sizes, max_seq_len=16, tie_embeddings=tied, zero_init=zero_init)
    for name, p in MiniLLM(cfg).named_parameters():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if p.ndim == 1:
            assert (p == 1).all(), name
        elif kind in ("wo", "w_down"):
            out = 0.0 if zero_init else 0.02 / math.sqrt(2 * cfg.n_layers)
            assert p.std().item() == pytest.approx(out, rel=0.03), name
        else:
            expected = 0.02 if kind in ("tok_embeddings", "output") else 1 / math.sqrt(cfg.dim)
            assert p.numel() >= 16_384 and p.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(p.mean().item()) < 0.03 * expected, name


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers_llama(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = CONFIG.model_copy(update={"tie_embeddings": tied})
    ours = random_model(cfg)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=32,
            rms_norm_eps=cfg.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=tied,
        )
    ).eval()
    names = {
        "tok_embeddings": "embed_tokens",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.w": "self_attn.",
    }
    state = {}
    for k, v in ours.state_dict().items():
        for a, b in names.items():
            k = k.replace(a, b)
        for x in "qkvo":
            k = k.replace(f"self_attn.{x}.", f"self_attn.{x}_proj.")
        for x in ("gate", "up", "down"):
            k = k.replace(f"ffn.w_{x}", f"mlp.{x}_proj")
        state["lm_head.weight" if k == "output.weight" else "model." + k] = v
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    tokens = torch.randint(0, 97, (3, 32))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, atol=2e-5, rtol=1e-4)


def test_fused_attention_equals_the_written_out_one():
    slow, fast = CausalSelfAttention(CONFIG), FlashAttention(CONFIG)
    fast.load_state_dict(slow.state_dict())
    x, f = torch.randn(2, 32, 64), precompute_freqs_cis(16, 32, 10_000.0)
    torch.testing.assert_close(slow(x, f), fast(x, f), atol=1e-6, rtol=1e-5)


def test_a_later_token_changes_no_earlier_logit():
    model = random_model()
    tokens = torch.randint(0, 97, (1, 32))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 97
    with torch.no_grad():
        a, b = model(tokens)[0], model(changed)[0]
    assert torch.equal(a[:, :20], b[:, :20])
    assert not torch.allclose(a[:, 20:], b[:, 20:])


def test_rotation_is_the_complex_product_of_the_half_split_pairs_and_depends_only_on_distance():
    f = precompute_freqs_cis(16, 8, 10_000.0)
    assert f.dtype == torch.complex64 and f.shape == (8, 8)
    q, k = torch.randn(2, 8, 4, 16), torch.randn(2, 8, 2, 16)
    rq, rk = apply_rotary_emb(q, k, f)
    turned = torch.complex(q[..., :8], q[..., 8:]) * f[None, :, None, :]
    torch.testing.assert_close(rq, torch.cat((turned.real, turned.imag), -1))
    same = torch.randn(1, 1, 1, 16).expand(1, 8, 1, 16)
    a, b = apply_rotary_emb(same, same, f)
    dots = torch.einsum("bthd,bshd->ts", a, b)
    torch.testing.assert_close(dots[1:, 1:], dots[:-1, :-1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="freqs_cis must have shape"):
        apply_rotary_emb(q, k, f[:4])
    with pytest.raises(ValueError, match="even"):
        precompute_freqs_cis(7, 4, 10_000.0)
    assert rk.shape == k.shape


def test_rmsnorm_equals_torchs():
    norm = RMSNorm(64, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (64,), norm.weight, 1e-5))


def test_loss_is_the_mean_over_valid_targets_and_none_without_targets():
    model = random_model()
    x, y = torch.randint(0, 97, (2, 2, 16))
    y[0, :5] = -100
    logits, loss = model(x, y)
    reference = torch.nn.functional.cross_entropy(logits.reshape(-1, 97), y.reshape(-1), ignore_index=-100)
    torch.testing.assert_close(loss, reference)
    each = model(x, y, reduction="none")[1]
    assert each.shape == (2, 16) and each[0, :5].eq(0).all()
    torch.testing.assert_close(each.sum() / (y != -100).sum(), loss)
    assert model(x)[1] is None


def test_the_first_loss_is_about_ln_v():
    torch.manual_seed(0)
    model = MiniLLM(CONFIG)
    x, y = torch.randint(0, 97, (2, 4, 32))
    assert abs(model(x, y)[1].item() - math.log(97)) < 0.1


def test_parameters_are_counted_without_the_model():
    for tied in (True, False):
        cfg = CONFIG.model_copy(update={"tie_embeddings": tied})
        model = MiniLLM(cfg)
        assert (
            count_params(cfg) == model.get_num_params(non_embedding=False) == sum(p.numel() for p in model.parameters())
        )
        assert count_params(cfg, non_embedding=True) == model.get_num_params()


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = MiniLLM(CONFIG)
    for block in model.layers:
        # The written-out attention, whose operations torch can count; it does not skip the masked half.
        slow = CausalSelfAttention(CONFIG)
        slow.load_state_dict(block.attention.state_dict())
        block.attention = slow
    x = torch.randint(0, 97, (1, 32))
    with FlopCounterMode(display=False) as counter:
        model(x, x)[1].backward()
    masked = 6 * CONFIG.n_layers * CONFIG.dim * CONFIG.max_seq_len
    # An embedding is below the first layer, so its input needs a gradient in all products, and all are counted.
    assert counter.get_total_flops() / 32 == pytest.approx(train_flops_per_token(CONFIG) + masked, rel=0.01)


def test_impossible_shapes_are_refused():
    model = random_model()
    with pytest.raises(ValueError, match="context of 32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        model(torch.zeros(5, dtype=torch.long))


def test_half_precision_keeps_the_rotations():
    model = random_model().to(torch.bfloat16)
    assert model.freqs_cis.dtype == torch.complex64
    assert model(torch.randint(0, 97, (1, 8)))[0].dtype == torch.bfloat16


def test_a_saved_model_comes_back_and_a_flipped_byte_does_not(tmp_path):
    model = random_model()
    save_model(tmp_path / "m", model)
    back = load_model(tmp_path / "m")
    assert back.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="changed after training"):
        load_model(tmp_path / "m")
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        load_model(tmp_path / "m")


def test_import_of_the_package_loads_nothing_heavy_and_the_public_names_are_there():
    import subprocess
    import sys

    code = (
        "import sys, foundry, foundry.cli, foundry.config\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'pandas', 'transformers', 'pandera'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from foundry import ModelConfig, TrainConfig, MiniLLM, Tokenizer, DataLoader, get_device\n"
        "from foundry.models import RMSNorm, Block, MLP, CausalSelfAttention, FlashAttention\n"
        "from foundry.models import apply_rotary_emb, precompute_freqs_cis\n"
        "from foundry.training import Trainer\nfrom foundry.inference import Generator\n"
        "from foundry.config import load_config, get_preset_config\n"
        "from foundry.utils import save_checkpoint, load_checkpoint, get_device_info\n"
        "print(get_device('cpu'), get_device_info()['device'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu ")


@pytest.mark.parametrize("context", ["", "with torch.device('meta'): "])
def test_a_model_has_mkl_choose_its_functions_before_two_threads_could(context):
    """In a process of its own, in which nothing was computed yet: sin and exp run on one element, on the CPU."""
    code = f"""
import torch
from foundry.config import ModelConfig
from foundry.models import MiniLLM
seen = []
for name in ("sin", "exp"):
    real = getattr(torch, name)
    setattr(torch, name, lambda x, real=real, name=name: (seen.append((name, x.numel(), x.device.type)), real(x))[1])
{context}MiniLLM(ModelConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16))
assert seen[:2] == [("exp", 1, "cpu"), ("sin", 1, "cpu")], seen
"""
    subprocess.run([sys.executable, "-c", code], check=True)
