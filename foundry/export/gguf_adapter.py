"""An adapter as a GGUF file for llama.cpp (`llama-server --lora`), which it adds to the GGUF file of the base.

llama.cpp computes `alpha / r * B @ A`, as PEFT and Foundry do. It knows matrices only: trained rows of an embedding
that is also the output head have no place in its file, and an adapter with them is refused. Its merged model is
exported instead.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from foundry.config import ExportError
from foundry.export.gguf_file import LAYER, interleave
from foundry.models import MiniLLM
from foundry.models.adapter import MATRICES
from foundry.utils.files import disk_errors, make_folder


def export_gguf_adapter(model: MiniLLM, path: str | Path, name: str) -> None:
    """Writes the adapter of a model in float32.

    Args:
        name: `general.name`.

    Raises:
        ExportError: if the adapter has trained rows, or was trained beside rounded weights.
    """
    cfg, adapter = model.cfg, model.adapter
    if adapter.rows:
        raise ExportError(
            f"the adapter trains {len(adapter.rows)} rows of the embedding, which llama.cpp's adapters cannot have: "
            "export the merged model (`foundry merge`)"
        )
    if adapter.base_weights != "float32":
        raise ExportError(
            f"the adapter belongs to {adapter.base_weights} matrices, and the GGUF file of the base has exact ones: "
            "export the merged model (`foundry merge`)"
        )
    path = Path(path)
    make_folder(path.parent)
    with disk_errors(path.parent):
        w = gguf.GGUFWriter(path, "qwen3" if cfg.qk_norm else "llama")
        w.add_type(gguf.GGUFType.ADAPTER)
        w.add_name(name)
        w.add_string(gguf.Keys.Adapter.TYPE, "lora")
        w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
        for i, block in enumerate(model.layers):
            for matrix in MATRICES:
                layer = block.get_submodule(matrix)
                a, b = (x.detach().float().cpu().numpy() for x in (layer.lora_A, layer.lora_B))
                if matrix in ("attention.wq", "attention.wk") and not cfg.qk_norm:
                    b = interleave(b, cfg.n_heads if matrix == "attention.wq" else cfg.n_kv_heads)
                for letter, values in (("a", a), ("b", b)):
                    w.add_tensor(f"blk.{i}.{LAYER[matrix]}.weight.lora_{letter}", np.ascontiguousarray(values))
        try:
            w.write_header_to_file()
            w.write_kv_data_to_file()
            w.write_tensors_to_file()
        finally:
            w.close()
