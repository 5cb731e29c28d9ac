"""One virtual environment per set of requirements, made when it is first needed and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from catalog import Peer

MADE: Final = "made"


class CannotRunError(Exception):
    """A library cannot be installed or run here; the text is its own."""


def python_of(peer: Peer, folder: Path) -> str:
    """Return the interpreter that has the peer; that of this process if it needs nothing.

    :raises CannotRunError: pip failed
    """
    if not peer.requirements:
        return sys.executable
    home = folder / name_of(peer)
    python = home / "bin" / "python"
    if not (home / MADE).exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True, symlinks=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
        kind = [] if peer.whole else ["--no-deps"]
        done = subprocess.run([*pip, *kind, *peer.requirements], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise CannotRunError(last_line(done.stderr))
        (home / MADE).write_text("\n".join(peer.requirements))
    return str(python)


def name_of(peer: Peer) -> str:
    """Return a folder's name that changes with the requirements, and with the Python they are for."""
    text = "\n".join([sys.version, str(peer.whole), *peer.requirements])
    return f"{peer.requirements[0].partition('==')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def last_line(text: str) -> str:
    """Return the last line that says something: where tracebacks and pip put the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1]
