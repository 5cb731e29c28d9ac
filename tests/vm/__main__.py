"""Virtual machine with Soft-RoCE devices: runs a command in it, as ``python tests/vm ibv_devinfo``."""

from __future__ import annotations

import argparse
import fcntl
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

import images
import machine

HOST_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "depmod": "kmod", "mkfs.ext4": "e2fsprogs"}
LOCK = pathlib.Path(tempfile.gettempdir()) / "aio-transfer-vm.lock"
PASSED = ("AIO_TRANSFER_", "CI", "FI_", "PYTEST_", "PYTHON")
"""Beginnings of the names of variables that reach the command."""
PATIENCE = "20"
"""How much slower Python runs in the guest. The kit's deadlines leave room for busy cores, which it needs here too."""
UNAVAILABLE = 77
"""Exit status: nothing is wrong, but this machine cannot do it."""
DEBIAN_PYTHON = "/usr/lib/python3/dist-packages"
"""Where the guest has pyverbs, built for CPython 3.11."""
COMMAND = [
    *("python", "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
    *("--timeout", "300", "tests/interop", "tests/conformance/test_conformance.py"),
    *("-k", "verbs and not uvloop and not 2-rails"),
]


def main() -> int:
    options = parse(sys.argv[1:])
    why = lacking(options.cache)
    if why:
        return refuse(why)
    with LOCK.open("w") as lock:
        # Two machines would share two cores, and the cache is not made for two writers.
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = options.cache / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            return run(options, work)
        except subprocess.CalledProcessError as error:
            if error.cmd[0] != "apt-get":
                raise
            return refuse(f"apt-get ended with {error.returncode}: no network, or not Debian's packages?")
        finally:
            shutil.rmtree(work)


def lacking(cache: pathlib.Path) -> str:
    """Say why it cannot run here, if that is known before anything is tried."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"it is made for Linux on x86-64, not for {platform.system()} on {platform.machine()}"
    wanted = missing_packages()
    if not any(cache.glob("system-*")):
        wanted.append("the guest's packages")
    if wanted and (os.geteuid() != 0 or shutil.which("apt-get") is None):
        return f"it lacks {', '.join(wanted)}, which apt-get gets where it is run as root"
    return ""


def missing_packages() -> list[str]:
    """Return what of Debian's packages this machine must have and has not."""
    return [package for program, package in HOST_PROGRAMS.items() if shutil.which(program) is None]


def refuse(why: str) -> int:
    """Say that nothing is wrong but the place."""
    machine.say(f"vm: cannot run here: {why}")
    return UNAVAILABLE


def parse(arguments: list[str]) -> argparse.Namespace:
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "aio-transfer-vm"
    parser = argparse.ArgumentParser(prog="python tests/vm", description=__doc__)
    parser.add_argument("--cache", type=pathlib.Path, default=cache, help=f"where images are kept: {cache}")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="from boot to end: 900")
    parser.add_argument("--cpus", type=int, default=2, help="2; with one, whoever spins waits for milliseconds")
    parser.add_argument("--memory", default="3G", help="3G")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the command")
    parser.add_argument("--prepare", action="store_true", help="only install and download what is missing here")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=f"by default: {shlex.join(COMMAND)}")
    options = parser.parse_args(arguments)
    options.cache = options.cache.resolve()
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    return options


def run(options: argparse.Namespace, work: pathlib.Path) -> int:
    started = time.monotonic()
    missing = missing_packages()
    if missing:
        images.install(*missing)
    system = images.build_system(options.cache, work)
    if options.prepare:
        return 0
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
    # asyncio's own checks would double its time.
    variables = {"AIO_TRANSFER_PATIENCE": PATIENCE, "AIO_TRANSFER_ASYNCIO_DEBUG": "0"}
    variables |= {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    variables |= dict(setting.split("=", 1) for setting in settings)
    variables["PYTHONPATH"] = ":".join(filter(None, [variables.get("PYTHONPATH"), DEBIAN_PYTHON]))
    variables["PATH"] = f"{sys.prefix}/bin:/usr/sbin:/usr/bin"
    variables["HOME"] = "/root"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*exports, f"cd {shlex.quote(str(images.CHECKOUT))}", shlex.join(command), ""])


if __name__ == "__main__":
    sys.exit(main())
