"""Build the emulated devices, lay out what the provider reads of sysfs, and say what a process needs to see them.

Usage: ``python tests/efa_emulator/emulator.py DIRECTORY [command ...]`` builds there, and runs the command on them.
``EFA_EMULATOR_SANITIZE=address,undefined`` builds them so; whoever loads them must have the sanitizers already.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Emulator", "Traffic", "build", "find_provider")

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror")
MOST_DEVICES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What queue pairs that have ended said of the packets that came in."""

    packets: int
    overtaken: int
    within: int

    @property
    def share(self) -> float:
        """Return which part of the packets came in after one that was sent later."""
        return self.overtaken / self.packets if self.packets else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """Emulated devices in a directory.

    :param root: where they were built; it also holds the sysfs that the provider is shown, and the log
    """

    root: Path

    @property
    def log(self) -> Path:
        """Return the file to which every queue pair adds a line when it ends."""
        return self.root / "traffic.log"

    def environment(self, **settings: object) -> dict[str, str]:
        """Return what a process needs in its environment when it starts.

        :param settings: of ``README.md``, in lower case and without the prefix: ``devices=2``
        """
        given = {f"EFA_EMULATOR_{name.upper()}": str(value) for name, value in settings.items()}
        return {
            "LD_LIBRARY_PATH": str(self.root / "lib"),
            "FI_PROVIDER_PATH": str(self.root / "providers"),
            "SYSFS_PATH": str(self.root / "sys"),
            "EFA_EMULATOR_LOG": str(self.log),
            **given,
        }

    def enter(self, **settings: object) -> None:
        """Let this process see them, and those that it starts, for good. Before libfabric is first used in it."""
        os.environ.update(self.environment(**settings))
        # The loader read LD_LIBRARY_PATH when we started; but what is loaded already is found by its name.
        for name in ("libibverbs.so.1", "libefa.so.1"):
            ctypes.CDLL(str(self.root / "lib" / name), mode=ctypes.RTLD_GLOBAL)

    def entries(self) -> list[dict[str, int]]:
        """Return what every queue pair that has ended said."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [{name: int(value) for name, value in (word.split("=") for word in line.split())} for line in lines]

    def traffic(self) -> Traffic:
        """Add up the log."""
        entries = self.entries()

        def total(name: str) -> int:
            return sum(entry[name] for entry in entries)

        return Traffic(packets=total("packets"), overtaken=total("overtaken"), within=total("within"))


def find_provider() -> Path | None:
    """Return the efa plug-in of the ``mpich`` wheel, if it is installed."""
    path = Path(sysconfig.get_path("data"), "lib", "mpich", "libfabric", "libefa-fi.so")
    return path if path.exists() else None


def build(root: Path, sanitize: str = "") -> Emulator:
    """Compile both libraries and lay out the rest below ``root``.

    :param sanitize: what g++ takes for ``-fsanitize=``
    """
    flags = (f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer") if sanitize else ()
    libraries = root / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    objects = root / "objects"
    objects.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(lambda source: _compile(source, objects, flags), sorted(SOURCES.glob("*.cpp"))))
    _link_library(libraries / "libibverbs.so.1", *flags, *(path for path in made if path.stem != "libefa"))
    _link_library(libraries / "libefa.so.1", *flags, objects / "libefa.o", f"-L{libraries}", "-l:libibverbs.so.1")
    provider = find_provider()
    if provider is not None:
        # Alone: the wheel's other plug-ins would want a whole libibverbs.
        _link(root / "providers" / provider.name, provider)
    _lay_out_sysfs(root / "sys")
    return Emulator(root=root)


def _compile(source: Path, objects: Path, flags: tuple[str, ...]) -> Path:
    made = objects / f"{source.stem}.o"
    command = ["g++", *FLAGS, *flags, "-c", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def _link_library(library: Path, *arguments: Path | str) -> None:
    names = (f"-Wl,-soname,{library.name}", f"-Wl,--version-script={SOURCES / library.name.split('.')[0]}.map")
    command = ["g++", "-shared", *names, *map(str, arguments), "-o", str(library), "-pthread"]
    subprocess.run(command, check=True)


def _lay_out_sysfs(sysfs: Path) -> None:
    """Make what the provider looks up: the ABI's version, and each device's PCI address and driver."""
    version = sysfs / "class" / "infiniband_verbs" / "abi_version"
    version.parent.mkdir(parents=True, exist_ok=True)
    version.write_text("6\n")
    driver = sysfs / "bus" / "pci" / "drivers" / "efa"
    driver.mkdir(parents=True, exist_ok=True)
    for number in range(MOST_DEVICES):
        device = sysfs / "devices" / "pci0000:00" / f"0000:00:{0x1B + number:02x}.0"
        device.mkdir(parents=True, exist_ok=True)
        _link(device / "driver", driver)
        (device / "numa_node").write_text(f"{number // 2}\n")  # two by two
        (device / "local_cpulist").write_text("0\n")
        _link(sysfs / "class" / "infiniband" / f"emulated{number}" / "device", device)
        port = sysfs / "class" / "infiniband" / f"emulated{number}" / "ports" / "1"
        port.mkdir(parents=True, exist_ok=True)
        (port / "state").write_text("4: ACTIVE\n")


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def main() -> int:
    """Build into the directory that was given, and run what follows it there."""
    directory, *command = sys.argv[1:]
    emulator = build(Path(directory).resolve(), os.environ.get("EFA_EMULATOR_SANITIZE", ""))
    if not command:
        sys.stdout.writelines(f"{name}={value}\n" for name, value in emulator.environment().items())
        return 0
    return subprocess.run(command, env=os.environ | emulator.environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
