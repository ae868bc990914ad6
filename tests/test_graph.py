"""The pipelines tell the truth: code, parameters and files that a stage uses are its dependencies; nothing else is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foundry.config import Config, load_params
from foundry.config.chat import POST_TRAINING
from foundry.config.pipelines import PIPELINES, read_stages
from foundry.config.schema import EXECUTION

ROOT = Path(__file__).resolve().parents[1]
FOUND = read_stages(ROOT)
STAGES = {name: stage.entry for name, stage in FOUND.items()}
# Law 10: tracking is a side effect that changes no out, so editing it must not retrain a model.
NO_DEPENDENCY = (
    "foundry/tracking/",
    "foundry/project/register.py",
    "foundry/project/compare.py",
    "foundry/project/trace.py",
)


KEYS = {
    "chat_data": ("model.max_seq_len",),
    "chat_evaluate": ("chat.verifiers",),
    "preferences": ("chat.verifiers",),
    "rl": ("chat.verifiers",),
    "align_evaluate": ("chat.verifiers",),
}


def module_file(name: str) -> Path | None:
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, in functions too, but not those for type checkers only."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{a.name}" for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {n for n in names if n.split(".")[0] in ("foundry", "stages")}


def closure(stage: str) -> list[str]:
    """Files of the project that run in a stage, its own first."""
    start = f"stages/{stage}.py"
    seen: set[str] = set()
    todo = [ROOT / start]
    while todo:
        path = todo.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in seen or name.startswith(NO_DEPENDENCY) or not path.read_text(encoding="utf-8").strip():
            continue
        seen.add(name)
        for module in imported(path):
            parts = module.split(".")
            todo += [f for i in range(1, len(parts) + 1) if (f := module_file(".".join(parts[:i])))]
    return [start, *sorted(seen - {start})]


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_exactly_the_import_closure(stage):
    code = [d for d in STAGES[stage]["deps"] if d.endswith(".py")]
    expected = closure(stage)
    file = PIPELINES[FOUND[stage].pipeline]
    assert code == expected, f"{file} should have these deps:\n" + "\n".join(f"      - {d}" for d in expected)
    assert len(expected) > 5  # the closure did not come out empty by mistake


def test_templates_of_pages_are_dependencies_of_the_stages_that_render_them():
    """A template is a file beside the module that names it."""
    found = 0
    for stage, node in STAGES.items():
        named = {
            (Path(name).parent / n.value).as_posix()
            for name in closure(stage)
            for n in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.endswith(".html")
        }
        expected = sorted(n for n in named if (ROOT / n).is_file())
        assert [d for d in node["deps"] if d.endswith(".html")] == expected, f"{stage} should have {expected}"
        found += len(expected)
    assert found >= 6


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_exactly_the_sections_that_the_stage_reads(stage):
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
    (work,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "work")
    name = work.args.args[0].arg
    read = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == name
    }
    read -= {*EXECUTION, "identity", "post_training"}  # execution keys are a dependency of nothing
    known = set(STAGES[stage].get("params", []))
    if stage == "train":  # the tracker's run name is no result
        read -= {"export"}
    # These pass the whole configuration on; the package reads what is named here, and execution keys.
    every = set(Config.model_fields) - EXECUTION - POST_TRAINING
    read |= {"evaluate": {"seed", "train.document_mask"}, "download": {"download"}, "export": every}.get(stage, set())
    # The lineage of an export has the parameters of what came before.
    read |= {"chat_export": {"chat", "sft", "chat_evaluate"}, "align_export": POST_TRAINING}.get(stage, set())
    # Single keys in place of their section: the rest of it changes nothing there.
    for key in KEYS.get(stage, ()):
        section = key.split(".")[0]
        text = ast.unparse(tree)
        read_section, read_key = (len(re.findall(rf"{name}\.{what}\b", text)) for what in (section, re.escape(key)))
        assert read_section == read_key > 0, f"{stage} reads more than {key}"
        read = read - {section} | {key}
    assert known == read


def test_an_execution_section_is_a_dependency_of_no_stage():
    assert {"runtime", "serving"} == EXECUTION
    assert all(p.split(".")[0] not in EXECUTION for s in STAGES.values() for p in s.get("params", []))


def test_every_file_dependency_is_made_by_an_earlier_stage():
    made = {"corpus", "tasks"}
    for stage, node in STAGES.items():
        assert {d for d in node["deps"] if not d.endswith((".py", ".html"))} <= made, stage
        made |= set(FOUND[stage].outs)


def test_each_stage_is_one_process_with_a_description_and_a_policy():
    for name, node in STAGES.items():
        folder = Path(PIPELINES[FOUND[name].pipeline]).parent  # all paths are those of the project's folder
        assert (ROOT / folder / node.get("wdir", ".")).resolve() == ROOT, name
        assert node["cmd"] == f"exec python -m stages.{name}"
        assert node["desc"] and node["meta"]["prefect"]["timeout_s"] > 0


def test_metrics_and_plots_are_kept_in_git():
    for node in STAGES.values():
        for kind in ("metrics", "plots"):
            assert all(
                isinstance(entry, dict) and next(iter(entry.values()))["cache"] is False for entry in node.get(kind, [])
            )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_heavy_tool_that_it_does_not_use(stage):
    heavy = {"mlflow", "prefect", "dvc", "transformers", "pandas"}
    if stage in ("download", "clean", "train_tokenizer", "shard", "chat_data"):
        heavy |= {"torch"}
    code = f"import sys, stages.{stage}\nfound = {heavy!r} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_run_one_way():
    """The contracts in pyproject.toml, by import-linter."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout


def test_no_stage_of_pre_training_depends_on_post_training():
    first = [s.entry for s in FOUND.values() if s.pipeline == "all"]
    assert len(first) == 7 < len(STAGES)
    assert not POST_TRAINING & {p.split(".")[0] for s in first for p in s.get("params", [])}
    cfg = load_params(ROOT / "params.yaml")
    assert not POST_TRAINING & set(cfg.identity()) and set(cfg.post_training()) == POST_TRAINING
