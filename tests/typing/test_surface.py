"""What users can see of the public classes changes only on purpose."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from surface import surface

MOST = {"Region": 11, "Transfer": 8, "ImmCounter": 8}


def test_the_public_surface_is_the_recorded_one() -> None:
    recorded = Path(__file__).with_name("surface.txt").read_text(encoding="utf-8").splitlines()
    assert surface() == recorded, "python tests/typing/surface.py > tests/typing/surface.txt, if that was meant"


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_classes_show_users_only_what_they_may_use(name: str, most: int) -> None:
    assert Counter(line.partition(".")[0] for line in surface())[name] <= most
