"""Options of the model, each compared with an independent implementation."""

import math

import pytest
import torch
import torch.nn.functional as F

from foundry.config import ModelConfig
from foundry.models import MiniLLM
from foundry.models.accounting import count_params
from foundry.models.components import CausalSelfAttention, FlashAttention, causal_products, visible
from foundry.models.loss import linear_cross_entropy, soft_cap, sum_dtype

pytestmark = pytest.mark.numeric
SMALL = ModelConfig(vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=24)


def made(**options):
    torch.manual_seed(0)
    model = MiniLLM(SMALL.model_copy(update={"zero_init": False, **options}))
    for p in model.parameters():  # norms that are not all 1
        if p.ndim == 1:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_with_qk_norm_equal_transformers_qwen3(tied, tokens, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = made(qk_norm=True, tie_embeddings=tied)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_position_embeddings=24,
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            attention_bias=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    ).eval()
    names = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {f"attention.w{x}": f"self_attn.{x}_proj" for x in "qkvo"}
    names |= {f"attention.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    names |= {f"ffn.w_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("layers."):
            _, i, rest = name.split(".", 2)
            state[f"model.layers.{i}.{names[rest.removesuffix('.weight')]}.weight"] = value
        else:
            first = name.removesuffix(".weight")
            state[
                {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}[first] + ".weight"
            ] = value
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], theirs(tokens).logits, atol=2e-5, rtol=1e-4)
    assert model.get_num_params(non_embedding=False) == count_params(model.cfg)


def test_soft_cap_bounds_the_logits_and_changes_small_ones_little(tokens):
    plain, capped = made(), made(logit_softcap=0.5)
    capped.load_state_dict(plain.state_dict())
    with torch.no_grad():
        a, b = plain(tokens)[0], capped(tokens)[0]
    torch.testing.assert_close(b, 0.5 * torch.tanh(a / 0.5))
    assert b.abs().max() < 0.5 < a.abs().max()


@pytest.mark.parametrize("window", [1, 5])
def test_a_sliding_window_sees_only_its_last_tokens(tokens, window):
    model = made(sliding_window=window, n_layers=1)
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 1) % 97
    with torch.no_grad():
        a, b = model(tokens)[0], model(other)[0]
    changed = (a != b).any(-1).all(0)
    assert changed.nonzero().flatten().tolist() == list(range(4, 4 + window))
    full = made(sliding_window=24)
    with torch.no_grad():
        torch.testing.assert_close(full(tokens)[0], made()(tokens)[0])


@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_query_sees_itself_and_what_came_before_it_within_the_window(window):
    seen = visible(4, 6, 2, torch.device("cpu"), window)
    assert seen.tolist() == [[0 <= 2 + t - s < (window or 6) for s in range(6)] for t in range(4)]


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("sizes", [[7] + 17 * [1], [1, 2, 2, 5, 14], [24]])
def test_with_a_cache_any_division_of_a_text_gives_the_logits_of_the_text(tokens, window, sizes):
    from foundry.inference.cache import KVCache

    model = made(sliding_window=window)
    with torch.no_grad():
        expected = model(tokens)[0]
        cache = KVCache(model.cfg, 3)
        parts = [model(piece, cache=cache)[0] for piece in tokens.split(sizes, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-4)


def test_with_document_masks_another_document_in_the_row_changes_nothing(tokens):
    model = made()
    segments = torch.tensor([0] * 10 + [1] * 9 + [2] * 5).expand(3, 24)
    other = tokens.clone()
    other[:, :10] = (other[:, :10] + 1) % 97
    with torch.no_grad():
        a, b = (model(t, segments=segments)[0] for t in (tokens, other))
        by_itself = model(tokens[:, 10:19])[0]
    assert torch.equal(a[:, 10:], b[:, 10:]) and not torch.equal(a[:, :10], b[:, :10])
    # Rotary positions depend only on distances: a document in the middle of a row gives the logits that it gives by
    # itself.
    torch.testing.assert_close(a[:, 10:19], by_itself, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_as_products_equals_the_fused_kernel_and_so_do_its_gradients(kv_heads, dtype, close):
    """Compared with float64; in bfloat16 the fused kernel's own error is as large."""
    rng = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(3, n, 24, 16, generator=rng, dtype=torch.float64) for n in (4, kv_heads, kv_heads, 4))

    def run(attend, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = attend(*leaves)
        return [out, *torch.autograd.grad(out, leaves, grad.to(dtype))]

    def fused(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for got, expected in zip(run(causal_products, dtype), run(fused, torch.float64), strict=True):
        assert got.dtype == dtype
        assert (got.double() - expected).norm() / expected.norm() < close


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_masked_attention_as_products_equals_the_fused_kernel_and_so_do_its_gradients(kv_heads, dtype, close):
    rng = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(3, n, 24, 16, generator=rng, dtype=torch.float64) for n in (4, kv_heads, kv_heads, 4))
    segments = torch.tensor([[0] * 24, [0] * 7 + [1] * 17, [0] * 3 + [1] * 9 + [-1] * 12])
    mask = visible(24, 24, 0, q.device) & (segments[:, :, None] == segments[:, None, :])[:, None]

    def run(attend, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = attend(*leaves)
        return [out, *torch.autograd.grad(out, leaves, grad.to(dtype))]

    def fused(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    products = run(lambda q, k, v: causal_products(q, k, v, mask), dtype)
    for got, expected in zip(products, run(fused, torch.float64), strict=True):
        assert got.dtype == dtype
        assert (got.double() - expected).norm() / expected.norm() < close
    unmasked = run(causal_products, dtype)
    assert torch.equal(products[0][0], unmasked[0][0]) and not torch.equal(products[0][1], unmasked[0][1])


def test_short_contexts_are_trained_as_products_in_bfloat16_on_a_cpu_only(monkeypatch):
    calls = []
    real = causal_products
    monkeypatch.setattr(
        "foundry.models.components.causal_products", lambda *qkv: calls.append(qkv[0].dtype) or real(*qkv)
    )
    model = MiniLLM(ModelConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16))
    tokens = torch.arange(16)[None]
    model.hidden(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            model.hidden(tokens)
        assert calls == []
        model.hidden(tokens)
        assert calls == [torch.bfloat16]
        monkeypatch.setattr("foundry.models.components.PRODUCTS_UP_TO", 15)
        model.hidden(tokens)
    assert calls == [torch.bfloat16]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_head_multiplies_in_the_precision_of_the_run(precision, monkeypatch):
    """The residual stream is in float32; a head that multiplied in its type would take most of a step."""
    seen = []
    head = linear_cross_entropy
    monkeypatch.setattr(
        "foundry.models.transformer.linear_cross_entropy", lambda x, *a, **k: seen.append(x.dtype) or head(x, *a, **k)
    )
    model = MiniLLM(ModelConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16))
    tokens = torch.arange(16)[None]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        model.summed_loss(tokens, tokens, chunk=8)[0].backward()
    assert seen == [precision]


def test_masks_give_the_same_in_the_fused_and_the_written_out_attention():
    cfg = SMALL.model_copy(update={"qk_norm": True})
    torch.manual_seed(0)
    written, fused = CausalSelfAttention(cfg), FlashAttention(cfg)
    fused.load_state_dict(written.state_dict())
    x, mask = torch.randn(2, 24, 32), torch.rand(2, 1, 24, 24) < 0.5
    mask |= torch.eye(24, dtype=torch.bool)
    freqs = MiniLLM(cfg).freqs_cis
    torch.testing.assert_close(written(x, freqs, mask=mask), fused(x, freqs, mask=mask), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("cap", "z_loss"), [(0.0, 0.0), (3.0, 0.0), (0.0, 0.01), (3.0, 0.01)])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_chunked_loss_and_its_gradients_are_those_of_the_full_logits(cap, z_loss, chunk):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(37, 16, generator=g, dtype=torch.float64), torch.randn(50, 16, generator=g, dtype=torch.float64)
    y = torch.randint(0, 50, (37,), generator=g)
    y[[3, 36]] = -100
    y[[4, 5]] = 0
    full_x, full_w = x.float().requires_grad_(), w.float().requires_grad_()
    logits = soft_cap(F.linear(full_x, full_w), cap)
    nats = F.cross_entropy(logits, y, reduction="sum")
    expected = nats + z_loss * (logits.logsumexp(1)[y >= 0] ** 2).sum()
    (expected * 0.3).backward()
    a, b = x.float().requires_grad_(), w.float().requires_grad_()
    total, got = linear_cross_entropy(a, b, y, chunk=chunk, cap=cap, z_loss=z_loss)
    (total * 0.3).backward()
    torch.testing.assert_close(total.detach(), expected.detach(), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(got, nats.detach(), atol=1e-4, rtol=1e-6)
    assert not got.requires_grad
    assert torch.equal(linear_cross_entropy(a.detach(), b.detach(), y, chunk=chunk, cap=cap, z_loss=z_loss)[0], total)
    torch.testing.assert_close(a.grad, full_x.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(b.grad, full_w.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_in_half_precision_has_the_gradients_of_float32_to_rounding(dtype):
    g = torch.Generator().manual_seed(0)
    x, w, y = (
        torch.randn(37, 16, generator=g),
        torch.randn(50, 16, generator=g),
        torch.randint(0, 50, (37,), generator=g),
    )
    grads = []
    for kind in (torch.float32, dtype):
        a, b = x.to(dtype).to(kind).requires_grad_(), w.to(dtype).float().requires_grad_()  # the same numbers in both
        linear_cross_entropy(a, b, y, chunk=7)[0].backward()
        grads.append((a.grad.float(), b.grad))
    for expected, got in zip(*grads, strict=True):
        assert (got - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_the_chunked_loss_gives_a_gradient_to_only_one_of_the_two(wanted):
    g = torch.Generator().manual_seed(0)
    x, w, y = torch.randn(9, 4, generator=g), torch.randn(6, 4, generator=g), torch.randint(0, 6, (9,), generator=g)
    leaf = x if wanted == "x" else w
    leaf.requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(F.linear(x, w), y, reduction="sum"), leaf)
    (got,) = torch.autograd.grad(linear_cross_entropy(x, w, y, chunk=4)[0], leaf)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_sums_are_in_float64_where_the_device_has_it():
    assert (sum_dtype(torch.device("cpu")), sum_dtype(torch.device("mps"))) == (torch.float64, torch.float32)
    n = 40_000  # losses of 0.1 to 0.6; summed in float32 one after the other they are off by more than 1e-3
    x, y = torch.linspace(0.2, 2.0, n)[:, None], torch.zeros(n, dtype=torch.long)
    w = torch.tensor([[1.0], [0.0]])
    nats = linear_cross_entropy(x, w, y, chunk=1)[1]
    exact = torch.log1p(torch.exp(-x.double())).sum()
    torch.testing.assert_close(nats.double(), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_in_float16_probabilities_below_its_range_still_have_their_gradient(scale):
    """Every token is predicted with confidence: each other one gets about 1e-9, and float16 ends at 6e-8."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(24, 16, generator=g) * 0.1, torch.randn(50, 16, generator=g) * 0.1
    x[:, 0], w[:, 0] = 4.0, 0.0
    w[7], w[7, 0] = 0.0, 5.0  # its logit is about 20, those of the others are about 0
    a, b = x.half().requires_grad_(), w.half().float().requires_grad_()
    (linear_cross_entropy(a, b, torch.full((24,), 7), chunk=10)[0] * scale).backward()
    # The other tokens and columns: float32 itself cannot distinguish the probability of the likely token from 1.
    likely, other = F.linear(a.detach(), b.detach().half()).double().softmax(1).split([8, 42], dim=1)
    d = torch.cat([likely[:, :7], other], dim=1)
    assert 1e-10 < d.min() < d.max() < 1e-8
    rows = torch.arange(50) != 7
    expected = d.T @ a.detach().double() * scale
    torch.testing.assert_close(b.grad[rows].double(), expected, atol=0.01 * expected.abs().max().item(), rtol=0.01)
    if scale > 1:  # the gradient of x is float16's own, and without the scale below its range
        expected = (d @ b.detach()[rows].double() * scale)[:, 1:]
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(a.grad[:, 1:].double(), expected, atol=0.02 * expected.abs().max().item(), rtol=0.02)


def test_the_chunked_loss_never_makes_more_than_a_chunk_of_logits(monkeypatch):
    from foundry.models import loss

    seen, linear = [], F.linear
    monkeypatch.setattr(loss.F, "linear", lambda x, w: seen.append(len(x)) or linear(x, w))
    x, w = torch.randn(1000, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    linear_cross_entropy(x, w, torch.zeros(1000, dtype=torch.long), chunk=128)[0].backward()
    assert seen == [128] * 7 + [104]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_works_under_autocast(dtype, tokens):
    model = made().train()
    with torch.autocast("cpu", dtype):
        total, nats = model.summed_loss(tokens[:, :-1], tokens[:, 1:], chunk=16)
    total.backward()
    exact = model.summed_loss(tokens[:, :-1], tokens[:, 1:], chunk=16)[1]
    assert nats.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )


def test_the_training_loss_is_that_of_forward(tokens):
    model = made(logit_softcap=2.0).train()
    _, plain = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
    plain.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total, nats = model.summed_loss(tokens[:, :-1], tokens[:, 1:], chunk=10)
    total.backward()
    torch.testing.assert_close(nats, plain.detach())
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cap", "z_loss"), [(0.0, 0.0), (3.0, 0.01)])
def test_weights_of_tokens_scale_each_cross_entropy_and_its_gradient_and_not_the_penalty(cap, z_loss, dtype):
    """Of either sign, as advantages are; weights of 1 are no weights, bit for bit."""
    g = torch.Generator().manual_seed(0)
    x, w, factors = (torch.randn(*s, generator=g) for s in ((37, 16), (50, 16), (37,)))
    y = torch.randint(0, 50, (37,), generator=g)
    y[[3, 36]], factors[7] = -100, 0.0
    exact_x, exact_w = (v.to(dtype).float().detach().requires_grad_() for v in (x, w))
    logits = soft_cap(F.linear(exact_x, exact_w), cap)
    each = F.cross_entropy(logits, y, reduction="none")
    lse = logits.logsumexp(1)[y >= 0]
    expected = (each * factors).sum() + z_loss * lse.square().sum()
    expected.backward()
    a, b = x.to(dtype).detach().clone().requires_grad_(), w.clone().requires_grad_()
    options = {"chunk": 7, "cap": cap, "z_loss": z_loss}
    total, nats = linear_cross_entropy(a, b, y, token_weights=factors, **options)
    total.backward()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    assert total.item() == pytest.approx(expected.item(), rel=tolerance, abs=10 * tolerance)
    assert nats.item() == pytest.approx(each.sum().item(), rel=tolerance)
    for got, want in ((a.grad, exact_x.grad), (b.grad, exact_w.grad)):
        torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance * want.abs().max().item())
    plain = linear_cross_entropy(a.detach(), b.detach(), y, **options)
    assert torch.equal(
        linear_cross_entropy(a.detach(), b.detach(), y, token_weights=torch.ones(37), **options)[0], plain[0]
    )


def test_recomputed_activations_give_the_same_gradients_with_dropout(tokens):
    model = made(dropout=0.3).train()

    def gradients(recompute):
        model.recompute = recompute
        model.zero_grad()
        torch.manual_seed(5)
        model.summed_loss(tokens[:, :-1], tokens[:, 1:], chunk=64)[0].backward()
        return [p.grad.clone() for p in model.parameters()]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(a, b)


def test_without_zero_init_the_blocks_do_something_and_the_first_loss_is_about_ln_v(tokens):
    torch.manual_seed(0)
    model = MiniLLM(SMALL.model_copy(update={"zero_init": False}))
    assert model.layers[0].attention.wo.weight.std().item() == pytest.approx(0.02 / 2, rel=0.1)
    assert model(tokens[:, :-1], tokens[:, 1:])[1].item() == pytest.approx(math.log(97), abs=0.1)
