"""What contributors meet before a review: hooks that download nothing, forms that a code host can read, floors."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_hooks_are_local_and_run_the_linters_of_make():
    repos = read_yaml(".pre-commit-config.yaml")["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert [repo["repo"] for repo in repos] == ["local"] and {hook["language"] for hook in hooks} == {"system"}
    programs = {hook["entry"].split()[0] for hook in hooks}
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert programs == {"ruff", "lint-imports", "mypy"} and all(f"@{program}" in recipes for program in programs)


def test_forms_of_issues_have_fields_that_must_be_filled_in():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in forms:
        body = read_yaml(form)["body"]
        assert all(field["attributes"]["label"] for field in body)
        assert any(field.get("validations", {}).get("required") for field in body)


def test_floors_of_coverage_are_of_folders_that_exist():
    found = re.search(r"^FLOORS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    floors = dict(part.split(":") for part in found[1].split())
    assert floors == {"foundry/models/*": "90", "foundry/data/*": "90", "foundry/utils/*": "85", "*": "85"}
    assert all(list(ROOT.glob(pattern)) for pattern in floors)


def test_ci_runs_the_linters_the_types_and_the_tests():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.findall(r"^make (.+)$", script, re.MULTILINE) == ["lint", "types", '"${1:-test}"']
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=False).returncode == 0
