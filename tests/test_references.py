"""Each citation in the code and in the documentation is an entry of docs/references.bib, and each entry is cited."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("foundry", "stages", "flows", "scripts", "benchmarks", "tutorials", "examples", "docs/en", "docs/zh", "tests")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# "Hu et al. 2024", "Zhang & Sennrich 2019", "Bradley & Terry (1952)", "Shazeer 2020"; in Chinese "Jordan 等，2024".
CITED = re.compile(
    r"\b([A-Z][A-Za-z]*[a-z])(?: et al\.| (?:&|and) [A-Z][A-Za-z]*[a-z]| 等)?(?:[,，]? \(?|，)((?:19|20)\d\d)\b"
    r"(?!-)\)?(?:[,:，]? \(?arXiv:(\d{4}\.\d{4,5}))?"
)
# Words before a year that are no authors.
NO_AUTHORS = {
    *("Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    *("December", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}


def entries():
    """{key: {field: value}} of the bibliography."""
    text = (ROOT / "docs/references.bib").read_text(encoding="utf-8")
    found = {}
    for key, body in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        assert key not in found, key
        found[key] = dict(re.findall(r"^  (\w+) = \{(.*)\},$", body, re.MULTILINE))
    return found


BIB = entries()


def tracked():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PLACES]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [n for n in names if n.endswith((".py", ".md")) and n != "tests/test_references.py" and (ROOT / n).is_file()]


def citations(text):
    """{(surname, year, arXiv number)} of a text; a part that it does not give is empty."""
    text = re.sub(r"\s*\n\s*(?:#\s*)?", " ", text)
    named = [m for m in CITED.findall(text) if m[0] not in NO_AUTHORS]
    return {*named, *(("", "", n) for n in ARXIV.findall(text))}


def resolved(name, year, number):
    """Keys of the entries that a citation can mean."""
    return [
        key
        for key, e in BIB.items()
        if (not name or (re.split(r"[ ,]", e["author"])[0] == name and e["year"] == year))
        and (not number or e.get("eprint") == number)
    ]


FOUND = {name: citations((ROOT / name).read_text(encoding="utf-8")) for name in tracked()}


def test_every_entry_has_what_a_reader_needs():
    assert len(BIB) > 50
    for key, e in BIB.items():
        assert {"author", "title", "year"} <= set(e) and ("eprint" in e) != ("howpublished" in e), key
        assert key.startswith(re.sub(r"\W.*", "", e["author"].strip("{").lower()) + e["year"]), key
    numbers = [e["eprint"] for e in BIB.values() if "eprint" in e]
    assert len(set(numbers)) == len(numbers)


def test_every_citation_resolves_to_an_entry():
    assert sum(map(len, FOUND.values())) > 100 and FOUND["foundry/models/components.py"] >= {
        ("Zhang", "2019", "1910.07467"),
        ("Ainslie", "2023", "2305.13245"),
    }
    unknown = [(name, cited) for name, every in FOUND.items() for cited in sorted(every) if not resolved(*cited)]
    assert unknown == []


def test_no_entry_is_without_a_citation():
    cited = {key for every in FOUND.values() for one in every for key in resolved(*one)}
    assert set(BIB) - cited == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an idea (Nobody et al. 2031)", ("Nobody", "2031", "")),
        ("# (the idea of Liger-Kernel, Hsu et al. 2024,\n# arXiv:2410.10988)", ("Hsu", "2024", "2410.10988")),
        ("as in arXiv:2999.99999", ("", "", "2999.99999")),
        ("Hu et al. 2022", ("Hu", "2022", "")),
    ],
)
def test_a_wrong_citation_would_be_found(text, expected):
    assert expected in citations(text) and not resolved(*expected)
    assert resolved("Hsu", "2024", "2410.10989") == ["hsu2024"] and resolved("Zhang", "2019", "2410.10989") == []
