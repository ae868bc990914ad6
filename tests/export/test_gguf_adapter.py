"""llama.cpp with an adapter is the merged model in llama.cpp and in Foundry; what its file cannot hold is refused."""

import json
import subprocess
import sys

import pytest
import torch

from foundry.config import ExportError, ModelConfig
from foundry.export.gguf_adapter import export_gguf_adapter
from foundry.export.gguf_file import export_gguf
from foundry.models import MiniLLM
from foundry.models.adapter import Adapter, adapt, merged, trained_parameters

CFG = ModelConfig(
    vocab_size=400, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=64, zero_init=False
)
IDS = [1, 60, 70, 80, 90, 61]
# A process of its own, as llama.cpp aborts on a bad file.
CHILD = """
import json, sys, xllamacpp
from foundry.export.llamacpp_child import _log_probs
model, adapter, scale, ids, vocab, plain = json.loads(sys.argv[1])
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port, p.n_ctx = model, ["127.0.0.1"], 0, 72
p.n_parallel, p.warmup, p.fit_params, p.ui = 1, False, False, False
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if adapter:
    p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, scale)]
server = xllamacpp.Server(p)
print(json.dumps(_log_probs(server.listening_address, ids, vocab, plain)))
"""


def adapted(rows=(), weights="float32"):
    torch.manual_seed(0)
    model = MiniLLM(CFG).eval()
    adapt(model, Adapter(4, 12.0, rows, weights), 7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(torch.empty_like(p).normal_(std=0.1, generator=generator))
    return model


def log_probs(model, adapter=""):
    arguments = json.dumps([str(model), str(adapter), 1.0, IDS, CFG.vocab_size, 60])
    done = subprocess.run([sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


def test_mistake_16_llamacpp_with_the_adapter_is_the_merged_model(tmp_path, tokenizer):
    model = adapted()
    torch.manual_seed(0)
    export_gguf(MiniLLM(CFG), tokenizer, tmp_path / "base.gguf", "f32", "base")
    export_gguf_adapter(model, tmp_path / "adapter.gguf", "adapter")
    export_gguf(merged(model), tokenizer, tmp_path / "merged.gguf", "f32", "merged")
    theirs, whole = log_probs(tmp_path / "base.gguf", tmp_path / "adapter.gguf"), log_probs(tmp_path / "merged.gguf")
    with torch.no_grad():
        ours = model(torch.tensor([IDS]))[0][0, -1].log_softmax(-1)
    known = torch.isfinite(theirs)  # the server reports nothing of tokens that it cannot show
    assert known.sum() > 100 and torch.equal(known, torch.isfinite(whole))
    assert (theirs - ours)[known].abs().max() < 1e-4 and (whole - ours)[known].abs().max() < 1e-4
    assert (log_probs(tmp_path / "base.gguf") - ours)[known].abs().max() > 0.01


@pytest.mark.parametrize(("options", "why"), [({"rows": (4, 5)}, "2 rows"), ({"weights": "int8"}, "int8 matrices")])
def test_what_an_adapter_of_llamacpp_cannot_hold_is_refused(tmp_path, options, why):
    with pytest.raises(ExportError, match=why):
        export_gguf_adapter(adapted(**options), tmp_path / "adapter.gguf", "adapter")
    assert not list(tmp_path.iterdir())
