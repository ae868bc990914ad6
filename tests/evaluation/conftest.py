"""A small model and held-out documents."""

import pytest
from scoring import tiny

from foundry.data.tokens.shards import Shards, read_clean
from foundry.evaluation.documents import held_out


@pytest.fixture(scope="session")
def net():
    return tiny()


@pytest.fixture(scope="session")
def held(shards, clean):
    rows = [r for part in read_clean(clean / "test", ["doc_id", "text", "lang"]) for r in part]
    return held_out(Shards(shards, "test"), rows)
