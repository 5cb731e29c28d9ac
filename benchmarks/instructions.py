"""Instructions per page, per awaited write and per target of a scatter, on shared memory: ``nox -s instructions``.

Counted by callgrind, so nothing that else runs on the machine shows. What a figure may be is in ``instructions.json``
beside this file; another compiler counts otherwise, so a tenth more is allowed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
SOURCES: Final = [
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("backends/core/*.cpp")),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("backends/shm/*.cpp")),
    "tests/native/instructions.cpp",
]
PER_ROUND: Final = {"pages": 4096, "write": 1, "scatter": 64}
FEW, MANY = 1, 11
ALLOWED: Final = 1.1
OWN_PIDFD: Final = 100


def build(program: Path) -> None:
    """Compile as a release does."""
    flags = ["-std=c++20", "-g", "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-Werror", "-Wl,--wrap=syscall"]
    command = ["g++", *flags, *SOURCES, "-o", str(program), "-pthread"]
    subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603


def counted(program: Path, work: str, rounds: int) -> int:
    """Return how many instructions so many rounds take, with what comes before and after them."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", str(program), work]
        said = subprocess.run(  # noqa: S603
            [*command, str(rounds)],
            env=os.environ | {"OWN_PIDFD": str(OWN_PIDFD)},
            preexec_fn=_name_ourselves,
            close_fds=False,
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"Collected : (\d+)", said.stderr)
    if said.returncode or found is None:
        raise SystemExit(f"{work} failed under valgrind:\n{said.stdout}{said.stderr}")
    return int(found[1])


def _name_ourselves() -> None:
    """Make a pidfd of the process that is about to become valgrind, which cannot make one."""
    os.dup2(os.pidfd_open(os.getpid()), OWN_PIDFD)


def main() -> int:
    """Count, print one JSON object per line, and return 1 where something has grown."""
    limits = json.loads((HERE / "instructions.json").read_text())
    grown = False
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "instructions")
        build(program)
        for work, items in PER_ROUND.items():
            few, many = (counted(program, work, rounds) for rounds in (FEW, MANY))
            each = (many - few) / (MANY - FEW) / items
            grown |= each > limits[work] * ALLOWED
            line = {"test": work, "instructions": round(each, 1), "recorded": limits[work], "per_round": items}
            print(json.dumps(line), flush=True)
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
