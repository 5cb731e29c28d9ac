"""Public surface: every public attribute of every class that the package names, one per line.

``python tests/typing/surface.py > tests/typing/surface.txt`` writes the list anew; a test compares the two.
"""

from __future__ import annotations

import inspect
import sys

import aio_transfer


def surface() -> list[str]:
    """Return ``Class.attribute`` for every public attribute, sorted; exceptions show what they add to ``Exception``."""
    found = []
    for name in aio_transfer.__all__:
        thing = getattr(aio_transfer, name)
        if inspect.isclass(thing):
            found += [f"{name}.{attribute}" for attribute in sorted(public(thing))] or [name]
        else:
            found.append(name)
    return found


def public(thing: type) -> set[str]:
    """Return the public attributes of a class: its methods, properties, slots and annotated fields."""
    inherited = set(dir(Exception if issubclass(thing, BaseException) else object))
    own = set(dir(thing))
    for base in thing.__mro__:
        own |= set(getattr(base, "__annotations__", ()))
    return {attribute for attribute in own - inherited if not attribute.startswith("_")}


if __name__ == "__main__":
    sys.stdout.write("\n".join(surface()) + "\n")
