"""MkDocs hook: tables that are made from the code while the site is built.

A page holds ``<!-- generated: errors -->`` where the table belongs. Nothing that is generated is committed, so it
cannot differ from the code. The functions return Markdown and can be called without MkDocs.
"""

from __future__ import annotations

import inspect
import itertools
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = (
    "GENERATORS",
    "cli",
    "errors",
    "expand",
    "frames",
    "limits",
    "on_page_markdown",
    "options",
    "rules",
)

_MARKER: Final = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_kwargs: Any) -> str:
    """Replace the markers of one page; MkDocs calls this."""
    return expand(markdown)


def expand(markdown: str) -> str:
    """Replace every marker by what its generator returns.

    :raises KeyError: there is no generator of that name
    """
    return _MARKER.sub(lambda match: GENERATORS[match[1]](), markdown)


def errors() -> str:
    """Return the table of errors: class, bases, attributes and the first line of its docstring."""
    from aio_transfer import errors as module

    rows = []
    for name in module.__all__:
        kind = getattr(module, name)
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        rows.append((f"[`{name}`](api.md#aio_transfer.{name})", bases, _attributes(kind), _summary(kind)))
    return _table(("error", "derived from", "attributes", "raised when"), rows)


def _attributes(kind: type[Exception]) -> str:
    if "__init__" not in vars(kind):
        return "—"
    found = re.findall(r"self\.(\w+) = ", inspect.getsource(kind))
    return ", ".join(f"`{name}`" for name in found) or "—"


def rules() -> str:
    """Return the rules as the conformance kit names them."""
    from aio_transfer.testing import RULES

    return _table(("rule", "statement in the kit's reports"), [(name, text) for name, text in RULES.items()])


def options() -> str:
    """Return one section per built-in backend, with a table of its options."""
    from aio_transfer.driver.backend_registry import load, names

    sections = []
    for name in names():
        backend = load(name)
        rows = [
            (
                f"`{row.name}`",
                row.type,
                row.allowed or "any",
                row.unit,
                f"`{row.default}`" if row.default else "—",
                row.meaning,
            )
            for row in backend.options.as_rows()
        ]
        body = (
            _table(("option", "type", "allowed", "unit", "default", "meaning"), rows)
            if rows
            else "It has no options.\n"
        )
        sections.append(f"## {name} {{ #{name} }}\n\n{backend.summary}\n\n{body}")
    return "\n".join(sections)


def frames() -> str:
    """Return the table of control frames: tag, name, fields, and the first line of each docstring."""
    from aio_transfer.control.frames import FRAME_TYPES

    rows = []
    for frame in FRAME_TYPES:
        fields = ", ".join(f"`{name}`" for name in frame.__struct_fields__)
        rows.append((str(frame.__struct_config__.tag), f"`{frame.__name__}`", fields or "—", _summary(frame)))
    return _table(("tag", "frame", "fields", "meaning"), rows)


def limits() -> str:
    """Return the table of the control protocol's version and limits."""
    from aio_transfer.control import frames as module
    from aio_transfer.control.framing import MAX_QUEUED_NBYTES
    from aio_transfer.control.handshake import HANDSHAKE_DEADLINE_S

    rows = [
        ("version", f"{module.PROTOCOL_VERSION}"),
        ("frame during the handshake", f"{module.MAX_HANDSHAKE_NBYTES:,} bytes"),
        ("frame afterwards", f"{module.MAX_FRAME_NBYTES:,} bytes"),
        ("application message", f"{module.MAX_MESSAGE_NBYTES:,} bytes"),
        ("file descriptors per frame", f"{module.MAX_FDS_PER_FRAME}"),
        ("counters per announcement", f"{module.MAX_ANNOUNCED_COUNTERS:,}"),
        ("characters of a reason", f"{module.MAX_REASON_CHARS:,}"),
        ("outgoing queue per connection", f"{MAX_QUEUED_NBYTES:,} bytes"),
        ("handshake deadline", f"{HANDSHAKE_DEADLINE_S:g} s"),
    ]
    return _table(("limit", "value"), rows)


def cli() -> str:
    """Return a section per command of ``aio-transfer``, from the objects that the command line runs."""
    import typer.main

    from aio_transfer.cli.main import app

    return "\n".join(_commands(typer.main.get_command(app), ("aio-transfer",)))


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    # Typer brings its own copy of Click since 0.29: only what both have is used, and nothing is imported from either.
    context = command.context_class(command, info_name=" ".join(path))
    name = " ".join(path)
    yield f"## `{name}` {{ #{'-'.join(path)} }}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```\n"
    yield _table(("option", "meaning"), list(_parameters(command, context)))
    if command.epilog:
        yield f"{_epilog(command.epilog)}\n"
    for inner, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, inner))


def _parameters(command: Any, context: Any) -> Iterator[tuple[str, ...]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            name, text = record
            yield f"`{name}`", text.replace("[", "\\[")


def _epilog(text: str) -> str:
    """Fence the indented lines of an epilog: on a terminal each keeps its own line."""
    lines = [line for line in inspect.cleandoc(text).splitlines() if line.strip()]
    parts: list[str] = []
    for indented, group in itertools.groupby(lines, lambda line: line.startswith("  ")):
        if indented:
            parts.append("\n".join(("```text", *(line.strip() for line in group), "```")))
        else:
            parts.append(" ".join(group))
    return "\n\n".join(parts)


def _summary(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"


GENERATORS: Final[dict[str, Callable[[], str]]] = {
    "cli": cli,
    "errors": errors,
    "frames": frames,
    "limits": limits,
    "options": options,
    "rules": rules,
}
