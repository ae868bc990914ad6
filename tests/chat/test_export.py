"""The export of a chat model: other engines hold the same conversation, or there is no export; and its chain."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace

import gguf
import pytest
import torch
import yaml
from example_records import example_cleaning, example_source
from tiny_chat import base_lineage, examples

from foundry.chat.answers import Asked, answer_all
from foundry.chat.card import chat_data as counted
from foundry.chat.export import export_chat, proof_prompts
from foundry.chat.modelfile import modelfile
from foundry.chat.tuned import Tuned
from foundry.config import ExportError, Serving
from foundry.config.chat import ChatExport
from foundry.export import chat_parity, gguf_file
from foundry.export.chat_parity import Conversations, prove_chat
from foundry.export.greedy import Continuation
from foundry.export.lineage import (
    ChatLink,
    TrainedLink,
    extended,
    file_hashes,
    read_lineage,
)
from foundry.export.manifest import read_record, verify_export
from foundry.models import ModelFacts
from foundry.models.files import weights_sha256
from foundry.project.trace import trace
from foundry.project.verify import verify
from foundry.serving.folders import load_folder
from foundry.tokenizers.chat import TEMPLATE_SHA256, Message, encode_chat, end_of_turn

PARAMS = ChatExport(gguf_types=["f32", "q8_0"])
with_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="xllamacpp is not installed (pip install foundry-lm[llamacpp])",
)


@pytest.fixture(scope="module")
def tuned(answering, tokenizer, tmp_path_factory):
    base, model = (weights_sha256(m) for m in answering)
    adapter = tmp_path_factory.mktemp("adapter")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    facts = ModelFacts(
        fingerprint="f" * 16,
        tokenizer_sha256=tokenizer.sha256,
        index_sha256="3" * 64,
        steps=220,
        tokens=9000,
        weights_sha256=model,
    )
    return Tuned("sft", answering[1], facts, base, base, TEMPLATE_SHA256, adapter)


@pytest.fixture(scope="module")
def project(tmp_path_factory, tuned, tokenizer, evaluation, chat_data):
    """A project with the files that the export's chain names."""
    root = tmp_path_factory.mktemp("project")
    for name in ("data/chat/train/examples.parquet", "data/fields/train.parquet", "artifacts/chat/sft/config.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    trained = TrainedLink(
        stage="sft",
        weights_sha256=tuned.facts.weights_sha256,
        parent_sha256=tuned.parent_sha256,
        fingerprint="f" * 16,
        steps=220,
        tokens=9000,
    )
    folders = {"chat data": "data/chat", "fields": "data/fields", "sft": "artifacts/chat/sft"}
    chat = ChatLink(
        trainings=[trained],
        data_sha256="3" * 64,
        template_sha256=TEMPLATE_SHA256,
        verifier_version=1,
        folders={link: file_hashes(root / folder) for link, folder in folders.items()},
        parameters={"sft": {"steps": 220}},
    )
    export_chat(
        root / "artifacts/chat/export",
        tuned,
        tokenizer,
        evaluation.report,
        example_cleaning(example_source(license="CC0-1.0", attribution="")),
        counted([*chat_data[0], *chat_data[1]]),
        ["The salt water of the ancient city."],
        proof_prompts(chat_data[1], tokenizer, 96),
        PARAMS,
        lineage=extended(base_lineage(tuned.base_sha256), chat),
    )
    return root


def test_conversations_and_greedy_answers_are_the_same_in_every_engine(project):
    record = verify_export(project / "artifacts/chat/export")
    chat = record.chat
    assert chat.stage == "sft" and chat.ended.low > 0.6 and chat.macro_exact.low > 0.2
    assert chat.proof.conversations >= 20 and chat.proof.greedy.prompts >= 20 and chat.proof.different == 0
    engines = ["transformers", *(["llama.cpp"] if importlib.util.find_spec("xllamacpp") else [])]
    assert chat.proof.engines == engines and (chat.proof.llama_cpp_greedy is not None) == (len(engines) == 2)
    assert chat.template_sha256 == TEMPLATE_SHA256


def test_the_folder_has_what_chat_programs_read(project, tokenizer):
    folder = project / "artifacts/chat/export"
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert {"Modelfile", "adapter/adapter_config.json", "lineage.json", "hf/README.md", "hf/LICENSE"} <= set(names)
    ends = json.loads((folder / "hf/generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == set(end_of_turn(tokenizer))
    made = (folder / "Modelfile").read_text()
    assert made.startswith("FROM ./foundry-chat-q8_0.gguf\n") and "PARAMETER num_ctx 96\n" in made
    assert all(f'PARAMETER stop "{s}"' in made for s in ("<|im_end|>", "</s>")) and "CC0-1.0" in made


def test_the_card_says_what_it_learnt_from_how_well_it_answers_and_what_it_forgot(project, evaluation):
    card = (project / "artifacts/chat/export/hf/README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc0-1.0" and "conversational" in head["tags"]
    (metric, ended) = head["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == evaluation.report.models["sft"].macro.all.value and ended["value"] > 0.7
    for part in (
        "## Chat data",
        "| echo |",
        "forgetting",
        "constant",
        "ollama create foundry-chat",
        "20 conversations",
    ):
        assert part in card or part == "20 conversations", part
    assert re.search(r"token ids of \d\d conversations", card) and "CC0-1.0" in card
    assert TEMPLATE_SHA256 in card


def test_the_modelfile_renders_what_the_template_of_the_training_renders(tokenizer):
    """Ollama reads this template in Go's language: a renderer of the four constructs that it uses."""
    text = modelfile("x.gguf", 256, None)
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    (body,) = re.findall(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}", template, re.DOTALL)
    turns = [Message("system", "Be short."), Message("user", "a\n b "), Message("assistant", "c"), Message("user", "")]
    rendered = "".join(body.replace("{{ .Role }}", m.role).replace("{{ .Content }}", m.content) for m in turns)
    rendered += template[template.index("{{ end }}") + len("{{ end }}") :]
    assert "{{" not in rendered
    parts = re.split(r"(<\|im_start\|>|<\|im_end\|>)", rendered)
    ids = [tokenizer.bos_id]  # which llama.cpp adds
    for part in parts:
        ids += [tokenizer.id_of(part)] if part.startswith("<|im_") else tokenizer.encode(part)
    assert ids == encode_chat(tokenizer, turns)


DRIFTS = {
    "no line end after a turn": ("{{ '\\n' }}{% endfor %}", "{% endfor %}"),
    "a default system turn": ("{{ bos_token }}", "{{ bos_token + '<|im_start|>system\\n<|im_end|>\\n' }}"),
    "two begin symbols": ("{{ bos_token }}", "{{ bos_token + bos_token }}"),
    "a space before the answer": ("assistant\\n' }}{% endif %}", "assistant\\n ' }}{% endif %}"),
}


@pytest.fixture(scope="module")
def asked(answering, tokenizer):
    turns = [[Message("user", e.prompt[0].content)] for e in examples("test")[:4]]
    turns.append([Message("system", "x"), Message("user", "y"), Message("assistant", "z"), Message("user", "水")])
    some = [Asked(tuple(encode_chat(tokenizer, t)), 12) for t in turns]
    answers = answer_all(answering[1], tokenizer, some)
    tokens = [[*a.ids, *([a.stop] if a.ended else [])] for a in answers]
    return Conversations(turns, [Continuation(list(s.ids), t, 12) for s, t in zip(some, tokens, strict=True)])


@pytest.mark.parametrize("drift", DRIFTS)
def test_mistake_07_a_template_that_drifts_between_training_and_serving_is_noticed(
    drift, project, answering, tokenizer, asked, tmp_path, monkeypatch
):
    shutil.copytree(project / "artifacts/chat/export/hf", tmp_path / "hf")
    f32 = project / "artifacts/chat/export/foundry-chat-f32.gguf"
    monkeypatch.setattr(chat_parity, "find_spec", lambda name: None)  # transformers alone
    prove_chat(tmp_path / "hf", f32, answering[1], tokenizer, asked, 1e-4)
    config = tmp_path / "hf/tokenizer_config.json"
    content = json.loads(config.read_text())
    changed = content["chat_template"].replace(*DRIFTS[drift])
    assert changed != content["chat_template"]
    config.write_text(json.dumps({**content, "chat_template": changed}))
    with pytest.raises(ExportError, match=r"transformers reads the conversation .* not that of the training"):
        prove_chat(tmp_path / "hf", f32, answering[1], tokenizer, asked, 1e-4)


@with_llama_cpp
def test_mistake_07_a_gguf_file_with_another_template_is_noticed(
    project, answering, tokenizer, asked, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        gguf_file, "CHAT_TEMPLATE", gguf_file.CHAT_TEMPLATE.replace(*DRIFTS["no line end after a turn"])
    )
    gguf_file.export_gguf(answering[1], tokenizer, tmp_path / "m.gguf", "f32", "m")
    with pytest.raises(ExportError, match=r"llama\.cpp reads the conversation"):
        prove_chat(project / "artifacts/chat/export/hf", tmp_path / "m.gguf", answering[1], tokenizer, asked, 1e-4)


def test_an_engine_that_answers_otherwise_or_does_not_end_is_noticed(project, answering, tokenizer, asked, monkeypatch):
    monkeypatch.setattr(chat_parity, "find_spec", lambda name: None)
    hf = project / "artifacts/chat/export/hf"
    first = asked.answers[0]
    endless = replace(first, tokens=[*first.tokens[:-1], *[5] * (12 - len(first.tokens) + 1)])
    with pytest.raises(ExportError, match="greedy continuations"):
        prove_chat(hf, None, answering[1], tokenizer, Conversations(asked.turns, [endless]), 1e-4)


def test_an_export_of_parts_that_do_not_belong_together_is_refused(tuned, tokenizer, evaluation, chat_data, tmp_path):
    cleaning = example_cleaning(example_source(license="CC0-1.0", attribution=""))
    prompts = proof_prompts(chat_data[1], tokenizer, 96)

    def attempt(changed, match):
        with pytest.raises(ExportError, match=match):
            export_chat(tmp_path / "out", changed, tokenizer, evaluation.report, cleaning, [], ["a"], prompts, PARAMS)
        assert not (tmp_path / "out").exists()

    attempt(replace(tuned, template_sha256="0" * 64), "trained with another chat template")
    attempt(replace(tuned, facts=tuned.facts.model_copy(update={"weights_sha256": "0" * 64})), "is of another model")
    attempt(replace(tuned, stage="rl"), "no such model")
    attempt(replace(tuned, facts=tuned.facts.model_copy(update={"tokenizer_sha256": "0" * 64})), "the tokenizer")
    with pytest.raises(ExportError, match="began with"):
        extended(base_lineage("9" * 64), read_lineage_chat(tuned))


def read_lineage_chat(tuned):
    link = TrainedLink(
        stage="sft", weights_sha256="1" * 64, parent_sha256=tuned.base_sha256, fingerprint="f", steps=1, tokens=1
    )
    return ChatLink(trainings=[link], data_sha256="", template_sha256="", verifier_version=1, folders={}, parameters={})


def test_the_trace_leads_from_the_chat_model_to_the_raw_bytes(project, tuned, params_of_project):
    found = trace(str(project / "artifacts/chat/export"), params_of_project, project)
    lines = "\n".join(found.lines())
    order = [
        lines.index(word) for word in ("← sft", "← chat data", "← fields", "← template", "← base model", "← shards")
    ]
    assert order == sorted(order)
    assert tuned.facts.weights_sha256 in lines and tuned.base_sha256 in lines and "step 220, 9,000 tokens" in lines
    assert found.to_dict()["chat"]["trainings"][0]["parent_sha256"] == tuned.base_sha256
    assert read_lineage(project / "artifacts/chat/export").chat.parameters == {"sft": {"steps": 220}}


@pytest.fixture
def params_of_project():
    from foundry.config import parse_config

    return parse_config({"download": {"sources": [{"name": "one", "url": "file:corpus/x"}]}})


def test_verify_notices_a_changed_and_an_added_file_of_the_chat_data(project, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(project, root)
    folder = root / "artifacts/chat/export"
    assert not [f for f in verify(folder, root) if f.broken and f.link in ("chat data", "fields", "sft", "export")]
    (root / "data/chat/train/examples.parquet").write_text("other")
    (root / "data/fields/more.parquet").write_text("added")
    broken = {f.link: f.state for f in verify(folder, root) if f.broken}
    assert broken["chat data"] == "changed" and broken["fields"] == "added"
    (folder / "Modelfile").write_text("FROM ./other.gguf\n")
    assert {f.state for f in verify(folder, root) if f.path.endswith("Modelfile")} == {"changed"}


def test_the_server_says_that_the_model_is_trained_to_answer(project):
    loaded = load_folder(project / "artifacts/chat/export", Serving(), "cpu", "export")
    loaded.backend.close()
    assert loaded.facts.chat_trained and loaded.name == "foundry-chat"


def test_the_files_are_those_of_the_model_and_of_this_template(project, answering):
    state = answering[1].state_dict()
    reader = gguf.GGUFReader(project / "artifacts/chat/export/foundry-chat-f32.gguf")
    assert torch.equal(
        torch.from_numpy(reader.tensors[0].data.copy()).view_as(state["tok_embeddings.weight"]),
        state["tok_embeddings.weight"],
    )
    assert read_record(project / "artifacts/chat/export").chat.parent_sha256 == weights_sha256(answering[0])
