"""The pages that exist in two languages: the English one, and its counterpart."""

from toy import ROOT

PAGES = {
    **{f"docs/en/{p.name}": f"docs/zh/{p.name}" for p in sorted((ROOT / "docs/en").glob("*.md"))},
    **{
        name: name.removesuffix(".md") + ".zh.md"
        for name in (
            "README.md",
            "tutorials/README.md",
            "examples/README.md",
            "examples/datasets/README.md",
            "study/README.md",
        )
        if (ROOT / name).exists()
    },
}
