"""llama.cpp runs the GGUF: ids, log-probabilities and greedy text are the model's, or an error names the difference."""

import importlib.util
import os
import subprocess

import gguf
import pytest
import torch

from foundry.config import ExportError
from foundry.export import export_gguf, llamacpp
from foundry.export.greedy import continuation
from foundry.export.llamacpp import prove_llamacpp
from foundry.export.proof import GreedyProof, LlamaCppMissing
from foundry.inference import Generator
from foundry.models import MiniLLM

TEXTS = ["The salt water and the ancient city.  Two spaces.\nA line.", "Boil 12 onions; add 3 cups of 水."]
PROMPTS = ["The", "Boil ", "", "a of salt"]
with_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="xllamacpp is not installed (pip install foundry-lm[llamacpp])",
)


def proved(path, model, tokenizer):
    T = model.cfg.max_seq_len
    contexts = torch.randint(400, (2, T), generator=torch.Generator().manual_seed(3)).tolist()
    contexts.append((tokenizer.encode(TEXTS[0], bos=True) * 9)[:T])
    generator = Generator(model, tokenizer, "cpu")
    continuations = [continuation(generator, p) for p in PROMPTS]
    return prove_llamacpp({"f32": path}, path.parent, model, tokenizer, TEXTS, contexts, continuations, 1e-4)


@with_llama_cpp
@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}, {"qk_norm": True}], ids=str)
def test_llama_cpp_computes_what_the_model_computes(make_model, model, tokenizer, tmp_path, options):
    model = make_model(model.cfg.model_copy(update=options), seed=2)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    done = proved(tmp_path / "m.gguf", model, tokenizer)
    assert done.proved and done.token_ids.strings > 60 and done.greedy.tokens > 50
    assert done.log_probs.positions == 3 and done.log_probs.largest_difference_below <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@with_llama_cpp
def test_without_a_float32_file_one_is_made_for_the_proof_and_the_others_run_too(model, tokenizer, tmp_path):
    """On a model with small weights, as a trained one has: random ones of size 0.3 make every rounding count."""
    calm = MiniLLM(model.cfg)
    calm.load_state_dict({k: v * (0.3 if v.ndim == 2 else 1) for k, v in model.state_dict().items()})
    calm.eval()
    continuations = [continuation(Generator(calm, tokenizer, "cpu"), "The")]
    files = {kind: tmp_path / f"m-{kind}.gguf" for kind in ("q8_0", "q4_0")}
    for kind, path in files.items():
        export_gguf(calm, tokenizer, path, kind, "m")
    done = prove_llamacpp(files, tmp_path, calm, tokenizer, [], [[1, 5, 9], list(range(20, 60))], continuations, 1e-4)
    off = {kind: figure.total_variation for kind, figure in done.formats.items()}
    assert done.proved and 0 < off["q8_0"] < off["q4_0"] < 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-q4_0.gguf", "m-q8_0.gguf"]


def test_what_is_not_a_distribution_is_refused(model):
    with pytest.raises(ExportError, match="probabilities of the q4_0 file sum to nan"):
        llamacpp._prove_format("q4_0", [[float("nan")] * 400], [[1, 2]], model)


def no_scores(self, scores):
    self.add_array("tokenizer.ggml.scores", [0.0] * len(scores))


def space_prefix(self, value):
    self.add_bool("tokenizer.ggml.add_space_prefix", True)


def other_base(self, value):
    self.add_float32("llama.rope.freq_base", 10000.0)


MISTAKES = {
    "not permuted": (
        lambda m: m.setattr("foundry.export.gguf_file.interleave", lambda w, heads: w),
        "log-probabilities after the 63 tokens of context 0 differ in llama.cpp: token",
    ),
    "wrong scores": (
        lambda m: m.setattr(gguf.GGUFWriter, "add_token_scores", no_scores),
        "token ids differ from position",
    ),
    "a space prefix": (
        lambda m: m.setattr(gguf.GGUFWriter, "add_add_space_prefix", space_prefix),
        "token ids differ from position . on for . .:",
    ),
    "another rotary base": (
        lambda m: m.setattr(gguf.GGUFWriter, "add_rope_freq_base", other_base),
        "log-probabilities after",
    ),
}


@with_llama_cpp
@pytest.mark.parametrize("name", MISTAKES)
def test_llama_cpp_finds_a_mistake_without_the_other_checks(model, tokenizer, tmp_path, monkeypatch, name):
    mistake, message = MISTAKES[name]
    mistake(monkeypatch)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    with pytest.raises(ExportError, match=message):
        proved(tmp_path / "m.gguf", model, tokenizer)


@with_llama_cpp
def test_a_file_that_makes_llama_cpp_abort_is_an_error_and_not_the_end_of_the_process(
    model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("foundry.export.gguf_file.check_vocabulary", lambda tokenizer: None)
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_token_list", lambda self, t: self.add_array("tokenizer.ggml.tokens", [*t[:-1], t[-2]])
    )
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    with pytest.raises(ExportError, match=r"llama\.cpp died (of SIG|with exit code).* on m\.gguf"):
        proved(tmp_path / "m.gguf", model, tokenizer)


def test_a_child_that_dies_of_a_signal_is_reported_with_its_last_lines(model, tokenizer, tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text("import os, sys\nprint('GGML_ASSERT failed', file=sys.stderr, flush=True)\nos.abort()\n")
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: object())
    monkeypatch.setattr(llamacpp.llamacpp_child, "__file__", str(script))
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    with pytest.raises(ExportError, match=r"(?s)llama\.cpp died of SIGABRT on m\.gguf.*GGML_ASSERT failed"):
        proved(tmp_path / "m.gguf", model, tokenizer)


def test_a_child_that_never_answers_is_stopped(model, tokenizer, tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    write_pid = "pathlib.Path(sys.argv[0]).with_name('pid').write_text(str(os.getpid()))"
    script.write_text(f"import os, pathlib, sys, time\n{write_pid}\ntime.sleep(600)\n")
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: object())
    monkeypatch.setattr(llamacpp.llamacpp_child, "__file__", str(script))
    monkeypatch.setattr(llamacpp, "SECONDS", 2)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    with pytest.raises(ExportError, match=r"did not answer about m\.gguf in 2 s"):
        proved(tmp_path / "m.gguf", model, tokenizer)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_where_it_is_not_installed_the_proof_says_so(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", None)
    missing = LlamaCppMissing(why="not proved here: xllamacpp is not installed")
    assert proved(tmp_path / "m.gguf", model, tokenizer) == missing
    assert missing.model_dump() == {"proved": False, "why": missing.why}


def test_other_log_probabilities_and_other_greedy_tokens_are_refused(model, tokenizer, tmp_path, monkeypatch):
    """Each comparison fails by itself: for answers that are off by one part in a thousand, and by one token."""
    generator = Generator(model, tokenizer, "cpu")
    c = continuation(generator, "The")
    ids, ours = c.prompt, c.tokens
    with torch.inference_mode():
        right = model(torch.tensor([ids]))[0][0, -1].double().log_softmax(-1)
    assert llamacpp._prove_log_probs([right.tolist()], [ids], model, 1e-4).largest_difference_below < 1e-8
    with pytest.raises(ExportError, match=r"token \d+ has .*, here "):
        llamacpp._prove_log_probs([(right * 1.001).tolist()], [ids], model, 1e-4)
    with pytest.raises(ExportError, match=r"differ in llama\.cpp"):
        llamacpp._prove_log_probs([[float("nan")] * 400], [ids], model, 1e-4)
    same = GreedyProof(prompts=1, tokens=len(ours), ties=0)
    assert llamacpp._prove_greedy([ours], [c], model, tokenizer, 1e-4) == same
    wrong = [*ours[:5], (ours[5] + 1) % 300 + 50, *ours[6:]]
    with pytest.raises(ExportError, match=r"differ at token 5.*in llama\.cpp"):
        llamacpp._prove_greedy([wrong], [c], model, tokenizer, 1e-4)
    with pytest.raises(ExportError, match="where one of them ends"):
        llamacpp._prove_greedy([[*ours, 7]], [c], model, tokenizer, 1e-4)
