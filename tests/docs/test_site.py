"""The site's own code: the Griffe extension for docstrings, and the tables that are made from the code."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

import pytest

EXTENSIONS = pathlib.Path(__file__).parents[2] / "docs/extensions"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


generated = load("generated_content")


# ---------------------------------------------------------------------------------------------------- generated tables


@pytest.mark.parametrize("name", sorted(generated.GENERATORS))
def test_a_generator_makes_tables(name: str) -> None:
    assert "| --- |" in generated.GENERATORS[name]()


def test_markers_are_replaced() -> None:
    page = generated.expand("before\n\n<!-- generated: errors -->\n\nafter")
    assert page.startswith("before\n\n| error |")
    assert page.endswith("after")
    assert "[`PeerLostError`](api.md#aio_transfer.PeerLostError)" in page


def test_an_unknown_marker_is_an_error() -> None:
    with pytest.raises(KeyError):
        generated.expand("<!-- generated: nothing -->")


def test_every_option_is_in_its_table() -> None:
    from aio_transfer.driver.backend_registry import load as load_backend
    from aio_transfer.driver.backend_registry import names

    text = generated.options()
    for backend in names():
        assert f"## {backend} " in text
        for option in load_backend(backend).options:
            assert f"| `{option}` |" in text


def test_every_command_has_a_section() -> None:
    text = generated.cli()
    for command in ("aio-transfer", "aio-transfer demo", "aio-transfer bench write"):
        assert f"## `{command}` " in text
    assert "`--version`" in text


# --------------------------------------------------------------------------------------------------- Griffe extension


SOURCE = '''
"""Package."""

from toy.inner import Engine, Record

__all__ = ("Engine", "Record")
'''
INNER = '''
"""Inner module."""


class Engine:
    """An engine.

    .. code-block:: python

        async with Engine():
            ...

    :ivar size: in bytes
    :source: docs/decisions.md
    """

    def start(self, count: int) -> None:
        """Start; see :meth:`stop`, :class:`Record`, :func:`hidden` and ``code``.

        :param count: how many
        :raises ValueError: too many
        :cancellation: ends at once;
            the rest goes on, see :meth:`~toy.inner.Engine.stop`
        :source: docs/explanation/contract.md, rule 3
        """

    def stop(self) -> None:
        """Stop."""


class Record:
    """A record.

    :param size: in bytes
    """

    size: int


def hidden() -> None:
    """Hide."""
'''


@pytest.fixture
def toy(tmp_path: pathlib.Path) -> object:
    griffe = pytest.importorskip("griffe", reason="nox -s docs installs it")
    fields = load("docstring_fields")
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE)
    (package / "inner.py").write_text(INNER)
    extension = fields.DocstringFields(facades=("toy",))
    return griffe.load(
        "toy",
        search_paths=[tmp_path],
        extensions=griffe.load_extensions(extension),
        docstring_parser=griffe.Parser.sphinx,
        resolve_aliases=True,
    )


def test_own_fields_become_sections(toy: object) -> None:
    parsed = toy["inner.Engine.start"].docstring.parsed
    assert [part.kind.value for part in parsed] == ["text", "parameters", "raises", "admonition", "admonition"]
    assert [part.title for part in parsed[3:]] == ["Cancellation", "Source"]
    cancellation, source = (part.value.description for part in parsed[3:])
    assert cancellation == "ends at once; the rest goes on, see [`stop`][toy.Engine.stop]"
    assert source == "`docs/explanation/contract.md`, rule 3"


def test_roles_become_links_to_documented_objects(toy: object) -> None:
    text = toy["inner.Engine.start"].docstring.parsed[0].value
    assert "[`stop`][toy.Engine.stop], [`Record`][toy.Record], `hidden` and ``code``" in text


def test_code_blocks_are_fenced(toy: object) -> None:
    text = toy["inner.Engine"].docstring.parsed[0].value
    assert text == "An engine.\n\n```python\nasync with Engine():\n    ...\n```"


def test_fields_of_a_record_are_attributes(toy: object) -> None:
    kinds = [part.kind.value for part in toy["inner.Record"].docstring.parsed]
    assert kinds == ["text", "attributes"]


def test_other_docstrings_stay_as_they_are(toy: object) -> None:
    assert "parsed" not in vars(toy["inner.hidden"].docstring)
