"""Code blocks of README and documentation: each runs as it stands, on shared memory and asyncio, within 10 s."""

from __future__ import annotations

import pathlib
import sys

import anyio
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # importmode=importlib puts no folder there

import code_blocks

RUN = [page for page in code_blocks.PAGES if any(map(code_blocks.is_run, code_blocks.parse(page.read_text())))]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(code_blocks.ROOT)))
def test_the_blocks_of_a_page_run(page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    anyio.run(code_blocks.PageRun(page, tmp_path).run)


def test_every_skipped_block_has_a_reason() -> None:
    for page in code_blocks.PAGES:
        for block in code_blocks.parse(page.read_text()):
            assert block.marker != "skip", f"{page}:{block.line}"


def test_readme_and_tutorial_skip_nothing() -> None:
    pages = [page for page in code_blocks.PAGES if page.name == "README.md" or page.parent.name == "tutorial"]
    for page in pages:
        assert not [block for block in code_blocks.parse(page.read_text()) if block.marker.startswith("skip")], page


@pytest.mark.parametrize(
    ("expected", "seen"),
    [("a … c", "a b c\n"), ("a\nb", "a\nb"), ("…", "anything")],
)
def test_output_matches(expected: str, seen: str) -> None:
    code_blocks.require_output(expected, seen, "here")


@pytest.mark.parametrize(("expected", "seen"), [("a … c", "a b\nc"), ("a", "a\nb"), ("a.c", "abc")])
def test_other_output_does_not_match(expected: str, seen: str) -> None:
    with pytest.raises(AssertionError, match="here shows"):
        code_blocks.require_output(expected, seen, "here")
