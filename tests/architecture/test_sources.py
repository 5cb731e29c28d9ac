"""Every ``:source:`` field of the package and its backends cites a file of the repository or a public document."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from source_tree import ROOT, modules

FIELD = re.compile(r"^[ \t]*:source:(.*(?:\n[ \t]+(?!:\w+).*\S.*)*)", re.MULTILINE)
FILE = re.compile(r"(?<![\w/])[\w./-]+\.(?:md|py|pyi|h|cpp|toml|json)\b")
PUBLIC = (
    re.compile(r"\b\w+\(\d\)"),  # a man page
    re.compile(r"\bRFC \d+"),
    re.compile(r"\barXiv \d+\.\d+"),
    re.compile(r'".+", .*\b(?:19|20)\d\d\b'),  # a paper: its title, where and when
    re.compile(r"\bCUDA (?:driver API|array interface)"),
    re.compile(r"\bdlpack\.h\b|\bthe array API\b"),
    re.compile(r"\brdma-core\b|\blibfabric\b"),
)
RULES = re.compile(r"contract\.md, rules? ([\d, toand–]+)")
DECISION = re.compile(r"\bD\d{3}\b")
NOT_OURS = {"dlpack.h"}


class Source(NamedTuple):
    """One field, and where it stands."""

    where: str
    text: str


def sources() -> list[Source]:
    found = []
    for module in modules():
        path = module.path.relative_to(ROOT)
        texts = [node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant)]
        for text in filter(lambda value: isinstance(value, str), texts):
            found += [Source(str(path), " ".join(match[1].split())) for match in FIELD.finditer(text)]
    return found


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.where)
def test_a_source_exists(source: Source) -> None:
    contract = (ROOT / "docs/explanation/contract.md").read_text()
    decisions = (ROOT / "docs/decisions.md").read_text()
    for item in source.text.split(";"):
        files = [name for name in FILE.findall(item) if name not in NOT_OURS]
        assert files or any(pattern.search(item) for pattern in PUBLIC), f"{source.where} cites {item.strip()!r}"
        for name in files:
            assert (ROOT / name).is_file(), f"{source.where} cites {name}, which is not in the repository"
        for rules in RULES.findall(item):
            for number in re.findall(r"\d+", rules):
                assert f"{{ #rule-{number} }}" in contract, f"{source.where} cites rule {number}"
        for decision in DECISION.findall(item):
            assert f"{{ #{decision.lower()} }}" in decisions, f"{source.where} cites {decision}"


def test_the_fields_are_found() -> None:
    assert len(sources()) >= 15
