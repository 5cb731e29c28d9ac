"""Options of backends: one table per backend that documents and checks what ``options={"name": {...}}`` may hold.

A table is declared beside its backend. The engine checks every value before a device is opened, and the reference page
of the documentation is made from the same table.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, SupportsIndex

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ("Option", "OptionRow", "OptionTable", "as_text", "suggestion")

_TRUE: Final = ("1", "true", "True")
_FALSE: Final = ("0", "false", "False")


class OptionRow(NamedTuple):
    """One option as text, for a reference page."""

    name: str
    type: str
    allowed: str
    default: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Option:
    """One option of one backend.

    ``None`` and an empty string mean that an option is not given, whatever its kind.

    :param name: its key in ``options={"backend": {...}}``
    :param kind: ``str``, ``int``, ``float``, ``bool``; ``list[str]`` or ``list[int]``, given as a sequence or as one
        string with commas; ``object`` for a Python object that is passed on as it is
    :param default: what the backend uses when the option is not given; ``None`` where that depends on something, which
        ``meaning`` explains
    :param meaning: for users, in one or two sentences
    :param unit: of a number, such as ``"s"`` or ``"bytes"``
    :param minimum: the smallest number allowed, of a list of numbers for each
    :param maximum: the largest number allowed, of a list of numbers for each
    :param choices: the only strings allowed; empty: any
    :param from_host: not given, it is the engine's ``host`` where that is an IP address and no wildcard
    """

    name: str
    kind: type
    default: object
    meaning: str
    _: KW_ONLY
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    from_host: bool = False

    def __post_init__(self) -> None:
        """Check the declaration itself.

        :raises TypeError: there is no such kind
        """
        if self.kind not in _KINDS:
            raise TypeError(f"option {self.name} is of kind {self.kind!r}")

    @property
    def allowed(self) -> str:
        """The values it may have, beyond its type: a range or the choices; empty where any will do."""
        if self.choices:
            return ", ".join(self.choices)
        if self.minimum is None and self.maximum is None:
            return ""
        if self.maximum is None:
            return f"{_number(self.minimum)} or more"
        if self.minimum is None:
            return f"at most {_number(self.maximum)}"
        return f"{_number(self.minimum)} … {_number(self.maximum)}"

    def parse(self, backend: str, value: object) -> object:
        """Return a value as its kind: a number, a boolean, a string, a tuple, or the object itself.

        :param backend: the backend's name, for the error
        :raises UsageError: the value is malformed or not allowed
        """
        kind = _KINDS[self.kind]
        try:
            parsed = kind.parse(value)
        except (TypeError, ValueError, OverflowError):
            raise self._error(backend, value, kind.plural) from None
        for item in parsed if isinstance(parsed, tuple) else (parsed,):
            if not self._allows(item):
                raise self._error(backend, value)
        return parsed

    def _allows(self, item: object) -> bool:
        if isinstance(item, str):
            return not self.choices or item in self.choices
        if isinstance(item, (int, float)):
            lowest = -math.inf if self.minimum is None else self.minimum
            highest = math.inf if self.maximum is None else self.maximum
            return lowest <= item <= highest
        return True

    def _error(self, backend: str, value: object, plural: str = "") -> UsageError:
        allowed = ", ".join(filter(None, (plural, f"{self.allowed} {self.unit}".strip())))
        shown = value if isinstance(value, str) else repr(value)
        nearest = suggestion(value, self.choices)
        return UsageError(f"{backend}: option {self.name} is {shown}: allowed are {allowed}{nearest}")

    def as_row(self) -> OptionRow:
        """Return it as text."""
        default = "" if self.default is None else as_text(self.default)
        return OptionRow(self.name, _KINDS[self.kind].name, self.allowed, default, self.unit, self.meaning)


class OptionTable(Mapping[str, Option]):
    """All options of one backend, by name, in the order of their declaration. Immutable."""

    __slots__ = ("_options",)

    def __init__(self, *options: Option) -> None:
        """Make a table.

        :raises ValueError: two options have one name
        """
        self._options = {option.name: option for option in options}
        if len(self._options) < len(options):
            raise ValueError("two options have one name")

    def __getitem__(self, name: str) -> Option:
        """Return an option by its name."""
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._options)

    def __len__(self) -> int:
        """Return the number of options."""
        return len(self._options)

    def check(self, backend: str, given: Mapping[str, object], *, host: str = "") -> dict[str, object]:
        """Check what a user gave, and return it with each value in the type of its option.

        Options that are not given stay out, but for those that default to the engine's host.

        :param backend: the backend's name, for errors
        :param host: the address where peers find the engine
        :raises UsageError: there is no such option, or a value is malformed or not allowed; the error names the option,
            the value and what is allowed
        """
        if not isinstance(given, Mapping):
            raise UsageError(f"{backend}: options are a mapping of names to values, not {given!r}")
        for name in given:
            if name not in self._options:
                known = f"there are {', '.join(self._options)}" if self._options else "it has none"
                message = f"{backend}: there is no option {name!r}: {known}{suggestion(name, self._options)}"
                raise UsageError(message)
        checked = {
            name: self._options[name].parse(backend, value)
            for name, value in given.items()
            if value is not None and not (isinstance(value, str) and not value)
        }
        for option in self._options.values():
            if option.from_host and option.name not in checked and _is_address(host):
                checked[option.name] = option.parse(backend, host)
        return checked

    def as_rows(self) -> list[OptionRow]:
        """Return the table as text, one row per option."""
        return [option.as_row() for option in self._options.values()]


def as_text(value: object) -> str:
    """Return a checked value as a native backend takes it: a list with commas, all else as ``str`` has it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return _number(value) if isinstance(value, float) else str(value)


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name that is nearest to a wrong one, or nothing."""
    import difflib  # 1 ms, and only errors need it

    near = difflib.get_close_matches(name, tuple(known), n=1) if isinstance(name, str) else ()
    return f"; did you mean {near[0]!r}?" if near else ""


class _Kind(NamedTuple):
    """How values of one kind are named and parsed; ``parse`` raises ``ValueError`` or ``TypeError``."""

    name: str
    plural: str
    parse: Callable[[object], object]


def _integer(value: object) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError
    return operator.index(value)


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _boolean(value: object) -> bool:
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    if value not in _TRUE + _FALSE:
        raise ValueError
    return value in _TRUE


def _string(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError
    return text


def _items(value: object) -> Sequence[object]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Sequence) or isinstance(items, bytes) or not items:
        raise TypeError
    return items


def _strings(value: object) -> tuple[str, ...]:
    names = tuple(map(_string, _items(value)))
    if not all(names) or any("," in name for name in names):
        raise ValueError
    return names


def _integers(value: object) -> tuple[int, ...]:
    return tuple(map(_integer, _items(value)))


_KINDS: Final[dict[type, _Kind]] = {
    str: _Kind("string", "strings", _string),
    int: _Kind("integer", "integers", _integer),
    float: _Kind("number", "numbers", _real),
    bool: _Kind("boolean", "True, False", _boolean),
    list[str]: _Kind("list of strings", "lists of names", _strings),
    list[int]: _Kind("list of integers", "lists of integers", _integers),
    object: _Kind("Python object", "objects", lambda value: value),
}


def _number(value: float | None) -> str:
    """Return a number as text; a whole one without its ``.0``."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_address(host: str) -> bool:
    """Whether it is an IP address, and not the one that stands for all."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            return any(socket.inet_pton(family, host))
    return False
