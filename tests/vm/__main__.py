"""Run a command in a virtual machine that has Soft-RoCE devices: ``python tests/vm ibv_devinfo``."""

from __future__ import annotations

import argparse
import fcntl
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import time

import images
import machine

HOST_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "depmod": "kmod", "mkfs.ext4": "e2fsprogs"}
LOCK = pathlib.Path(tempfile.gettempdir()) / "aio-transfer-vm.lock"
PASSED = ("AIO_TRANSFER_", "CI", "FI_", "PYTEST_", "PYTHON")
"""Beginnings of the names of variables that reach the command."""
PATIENCE = "6"
"""Python runs 20 times slower in the guest, and the kit's deadlines leave room for some of that."""
DEBIAN_PYTHON = "/usr/lib/python3/dist-packages"
"""Where the guest has pyverbs, built for CPython 3.11."""
COMMAND = [
    *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
    *("--timeout", "120", "tests/interop", "tests/conformance/test_conformance.py", "-k", "verbs"),
]


def main() -> int:
    options = parse(sys.argv[1:])
    with LOCK.open("w") as lock:
        # Two machines would share two cores, and the cache is not made for two writers.
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = options.cache / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            return run(options, work)
        finally:
            shutil.rmtree(work)


def parse(arguments: list[str]) -> argparse.Namespace:
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "aio-transfer-vm"
    parser = argparse.ArgumentParser(prog="python tests/vm", description=__doc__)
    parser.add_argument("--cache", type=pathlib.Path, default=cache, help=f"where images are kept: {cache}")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="from boot to end: 900")
    parser.add_argument("--cpus", type=int, default=2, help="2; with one, whoever spins waits for milliseconds")
    parser.add_argument("--memory", default="3G", help="3G")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the command")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=f"by default: {shlex.join(COMMAND)}")
    options = parser.parse_args(arguments)
    options.cache = options.cache.resolve()
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    return options


def run(options: argparse.Namespace, work: pathlib.Path) -> int:
    started = time.monotonic()
    missing = [package for program, package in HOST_PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        images.install(*missing)
    system = images.build_system(options.cache, work)
    python, prefixes = images.build_python(options.cache, work)
    guest = machine.Machine(
        kernel=system / "vmlinuz",
        ramdisk=images.build_ramdisk(system, work, prefixes, script(options.command or COMMAND, options.env)),
        images=[system / "system.ext4", python],
        cpus=options.cpus,
        memory=options.memory,
    )
    machine.say(f"vm: images ready after {time.monotonic() - started:.1f} s")
    status = guest.run(options.cache / "console.log", work / "status", options.timeout)
    machine.say(f"vm: exit status {status} after {time.monotonic() - started:.1f} s")
    return status


def script(command: list[str], settings: list[str]) -> str:
    """Write the command as the guest's shell runs it."""
    variables = {"AIO_TRANSFER_PATIENCE": PATIENCE}
    variables |= {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    variables |= dict(setting.split("=", 1) for setting in settings)
    variables["PYTHONPATH"] = ":".join(filter(None, [variables.get("PYTHONPATH"), DEBIAN_PYTHON]))
    variables["PATH"] = f"{sys.prefix}/bin:/usr/sbin:/usr/bin"
    variables["HOME"] = "/root"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*exports, f"cd {shlex.quote(str(images.CHECKOUT))}", shlex.join(command), ""])


if __name__ == "__main__":
    sys.exit(main())
