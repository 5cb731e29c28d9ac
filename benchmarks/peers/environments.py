"""Virtual environments: one per set of requirements, created on first use and kept."""

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

INSTALLED: Final = "installed"
"""File that marks a complete environment."""


class CannotRunError(Exception):
    """A library cannot be installed or run here; the message is its own."""


def python_of(peer: Peer, folder: Path) -> str:
    """Return the interpreter with the peer installed: this process's own if it has no requirements.

    :raises CannotRunError: pip failed
    """
    if not peer.requirements:
        return sys.executable
    home = folder / name_of(peer)
    python = home / "bin" / "python"
    if not (home / INSTALLED).exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True, symlinks=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
        no_dependencies = [] if peer.with_dependencies else ["--no-deps"]
        done = subprocess.run([*pip, *no_dependencies, *peer.requirements], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise CannotRunError(last_line(done.stderr))
        (home / INSTALLED).write_text("\n".join(peer.requirements))
    return str(python)


def name_of(peer: Peer) -> str:
    """Return a folder name that depends on the requirements and on the Python version."""
    text = "\n".join([sys.version, str(peer.with_dependencies), *peer.requirements])
    return f"{peer.requirements[0].partition('==')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def last_line(text: str) -> str:
    """Return the last line with an error, or the last line: tracebacks and pip end with it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it printed nothing"])[-1]
