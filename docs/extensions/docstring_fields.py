"""Griffe extension: reST docstrings of this project as sections and links.

Griffe's Sphinx parser knows ``:param:``, ``:returns:``, ``:raises:`` and ``:ivar:``. It leaves other fields and inline
roles as text. This extension turns the project's own fields into titled sections after the parsed ones, inline roles
into links to documented objects, and ``.. code-block::`` into fenced code.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from typing import TYPE_CHECKING, Any, Final

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("DocstringFields",)

FIELDS: Final = {"cancellation": "Cancellation", "units": "Units", "source": "Source"}
"""Our own fields, in the order in which they are shown."""

_FIELD: Final = re.compile(rf"^:({'|'.join(FIELDS)}):\s*(.*)$")
_ROLE: Final = re.compile(r":(?:py:)?(?:class|meth|func|data|mod|attr|exc):`(~?)([^`]+)`")
_CODE_BLOCK: Final = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:\1 +.*\n?|\s*\n)+)", re.MULTILINE)
_DOCUMENTS: Final = re.compile(r"(?<![\w`/.])((?:docs|benchmarks)/[\w/.-]+\.md)")


class DocstringFields(griffe.Extension):
    """Rewrites every docstring of the package once it has been loaded.

    :param facades: modules whose ``__all__`` is documented; only names that one of them exports are linked
    """

    def __init__(
        self, facades: tuple[str, ...] = ("aio_transfer", "aio_transfer.driver", "aio_transfer.testing")
    ) -> None:
        """Keep the facades; the first one that exports a name is linked to."""
        self._facades = facades

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_kwargs: Any) -> None:
        """Rewrite the docstrings of everything that a facade of ``pkg`` exports."""
        links = dict(_links(pkg, self._facades))
        options = dict(loader.docstring_options)
        for exported in _exported(pkg, self._facades):
            for obj in _objects(exported):
                if obj.docstring is not None:
                    _rewrite(obj, obj.docstring, links, options)


def _rewrite(obj: griffe.Object, docstring: griffe.Docstring, links: dict[str, str], options: dict[str, Any]) -> None:
    text, fields = split_fields(docstring.value)
    if isinstance(obj, griffe.Class):
        text = _parameters_to_attributes(text, obj)
    docstring.value = _to_markdown(text, obj, links)
    sections = griffe.parse(docstring, griffe.Parser.sphinx, **options)
    sections += [
        griffe.DocstringSectionAdmonition(kind=name, title=FIELDS[name], text=_to_markdown(fields[name], obj, links))
        for name in FIELDS
        if name in fields
    ]
    # `parsed` is a cached property: what lies in the instance's dictionary is what the templates get.
    vars(docstring)["parsed"] = sections


def _parameters_to_attributes(text: str, kind: griffe.Class) -> str:
    """Show the fields of a record as attributes: its constructor is generated, so no signature names them."""
    init = kind.members.get("__init__")
    if init is not None and init.docstring is not None:
        return text
    return re.sub(r"^:param (\w+):", lambda field: f":ivar {field[1]}:", text, flags=re.MULTILINE)


def split_fields(text: str) -> tuple[str, dict[str, str]]:
    """Separate our own fields from the rest of a docstring.

    :returns: the remaining text, and the fields by name, each on one line
    """
    kept: list[str] = []
    fields: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        match = _FIELD.match(line)
        if match:
            current = match[1]
            fields[current] = f"{fields[current]} {match[2]}" if current in fields else match[2]
        elif current and line.startswith(" "):
            fields[current] += f" {line.strip()}"
        else:
            current = ""
            kept.append(line)
    return "\n".join(kept).rstrip(), fields


def _to_markdown(text: str, obj: griffe.Object, links: dict[str, str]) -> str:
    def link(match: re.Match[str]) -> str:
        short, name = match[1], match[2]
        shown = name.rpartition(".")[2] if short else name.removeprefix("~")
        target = _resolve(name.lstrip("~."), obj, links)
        return f"[`{shown}`][{target}]" if target else f"`{shown}`"

    text = _CODE_BLOCK.sub(lambda match: _fence(*match.groups()), text)
    text = re.sub(r"(?<=\S)::$", ":", text, flags=re.MULTILINE)
    return _DOCUMENTS.sub(r"`\1`", _ROLE.sub(link, text))


def _fence(indent: str, language: str, body: str) -> str:
    lines = textwrap.dedent(body).strip("\n")
    return textwrap.indent(f"```{language}\n{lines}\n```\n", indent)


def _resolve(name: str, obj: griffe.Object, links: dict[str, str]) -> str:
    """Return the identifier under which ``name``, as written in the docstring of ``obj``, is documented, or ``""``."""
    scope: griffe.Object | None = obj
    candidates = [name]
    while scope is not None:
        candidates.append(f"{scope.path}.{name}")
        scope = scope.parent
    first, _, rest = name.partition(".")
    with contextlib.suppress(griffe.NameResolutionError):
        candidates.append(".".join(filter(None, (obj.resolve(first), rest))))
    return next((links[candidate] for candidate in candidates if candidate in links), "")


def _exported(pkg: griffe.Module, facades: tuple[str, ...]) -> Iterator[griffe.Object]:
    for facade in facades:
        module = pkg if facade == pkg.path else pkg.modules_collection.get_member(facade)
        for name in module.exports or ():
            target = _target(module.members.get(str(name)))
            if target is not None:
                yield target


def _links(pkg: griffe.Module, facades: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield every path of an exported object, and of its members, with the identifier that it has on the page."""
    for facade in reversed(facades):
        module = pkg if facade == pkg.path else pkg.modules_collection.get_member(facade)
        for name in map(str, module.exports or ()):
            target = _target(module.members.get(name))
            if target is None:
                continue
            public = f"{facade}.{name}"
            yield public, public
            yield target.path, public
            for inner, member in target.members.items() if target.is_class else ():
                if not inner.startswith("_") and not member.is_alias:
                    # A member without a docstring has no heading of its own.
                    shown = f"{public}.{inner}" if member.docstring is not None else public
                    yield f"{target.path}.{inner}", shown
                    yield f"{public}.{inner}", shown


def _target(member: griffe.Object | griffe.Alias | None) -> griffe.Object | None:
    try:
        return member.final_target if isinstance(member, griffe.Alias) else member
    except (griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def _objects(root: griffe.Object) -> Iterator[griffe.Object]:
    yield root
    for member in list(root.members.values()):
        if not isinstance(member, griffe.Alias):
            yield from _objects(member)
