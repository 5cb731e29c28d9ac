"""Images of the virtual machine: Debian's kernel and programs, this machine's Python, and the checkout.

No guest package is installed here: packages are unpacked into a cache, so the host's boot set-up stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

GUEST = pathlib.Path(__file__).parent / "guest"
CHECKOUT = pathlib.Path(__file__).parents[2]
CARRIED = ("aio_transfer", "backends", "benchmarks", "docs", "examples", "tests", "README.md", "pyproject.toml")
"""What of the checkout goes along."""

PACKAGES = [
    *("bash", "busybox-static", "coreutils", "findutils", "grep", "mawk", "procps", "sed", "util-linux"),
    *("linux-image-amd64", "kmod", "iproute2", "libstdc++6"),
    *("rdma-core", "ibverbs-providers", "librdmacm1", "ibverbs-utils", "perftest", "python3-pyverbs"),
]
BOOT_MODULES = ["virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4"]
MODULES = [
    # No crc32_pclmul: rxe would take it, and its instruction is slower to emulate than a table is to read.
    *("rdma_rxe", "crc32_generic", "ib_uverbs", "ib_umad", "rdma_ucm"),
    *("veth", "bridge", "dummy", "sch_netem", "sch_tbf"),
]
UNUSED = ("*.a", "config-3*", "ensurepip", "idlelib", "lib2to3", "pip", "test", "tkinter", "turtledemo")
"""Parts of a Python installation that no test imports, and half of its size."""
RECIPE = pathlib.Path(__file__).read_text()
"""A part is built again when this changes."""
TABLES_NBYTES = 64 << 20
"""Room for a file system's own tables. Image files are sparse, so it costs nothing."""


def build_system(cache: pathlib.Path, work: pathlib.Path) -> pathlib.Path:
    """Build, unless it is there, the folder with ``vmlinuz``, ``busybox``, ``boot.cpio`` and ``system.ext4``.

    :param cache: folder of finished parts
    :param work: empty folder on the same file system
    """
    made = cache / f"system-{_digest(RECIPE)}"
    if made.exists():
        return made
    for stale in cache.glob("system-*"):
        shutil.rmtree(stale)
    root, result = work / "root", work / "result"
    result.mkdir()
    _unpack(_download(work / "debs"), root)
    shutil.copy(root / "bin/busybox", result)
    shutil.copy(next(root.glob("boot/vmlinuz-*")), result / "vmlinuz")
    shutil.rmtree(root / "boot")
    _select_modules(root, work / "boot")
    shutil.copy(root / "bin/busybox", work / "boot/vm")
    _ramdisk(result / "busybox", work / "boot", result / "boot.cpio")
    run("ldconfig", "-r", root)
    _ext4(root, result / "system.ext4")
    return result.rename(made)


def build_python(cache: pathlib.Path, work: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """Build, when it has changed, the image of the Python environment that runs this.

    :returns: the image, and the folders in it that the guest must see at the same paths as here
    """
    # Debian's own Python is in the system image.
    prefixes = [path for path in dict.fromkeys((sys.base_prefix, sys.prefix)) if path != "/usr"]
    made = cache / f"python-{_digest(RECIPE, *(line for prefix in prefixes for line in _state(prefix)))}.ext4"
    if not made.exists():
        for stale in cache.glob("python-*"):
            stale.unlink()
        root = work / "python"
        for prefix in prefixes:
            # The interpreter's own packages are not the environment's.
            unused = UNUSED if prefix == sys.prefix else (*UNUSED, "site-packages")
            shutil.copytree(prefix, f"{root}{prefix}", symlinks=True, ignore=shutil.ignore_patterns(*unused))
        _compile(root)
        _rewrite(root, work / "rewritten")
        _ext4(root, work / "python.ext4")
        (work / "python.ext4").rename(made)
    return made, prefixes


def build_ramdisk(system: pathlib.Path, work: pathlib.Path, prefixes: list[str], command: str) -> pathlib.Path:
    """Put the checkout, writable, and what to run there behind the modules that the kernel boots with."""
    root = work / "checkout"
    shutil.copytree(GUEST, root / "vm")
    (root / "vm/init").rename(root / "init")
    (root / "vm/prefixes").write_text("".join(f"{prefix}\n" for prefix in prefixes))
    (root / "vm/command").write_text(command)
    for part in CARRIED:
        target = root / (CHECKOUT / part).relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / part).is_dir():
            unused = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(CHECKOUT / part, target, symlinks=True, ignore=unused)
        else:
            shutil.copy2(CHECKOUT / part, target)
    _compile(root)
    _ramdisk(system / "busybox", root, work / "checkout.cpio")
    ramdisk = work / "ramdisk"
    ramdisk.write_bytes((system / "boot.cpio").read_bytes() + (work / "checkout.cpio").read_bytes())
    return ramdisk


def install(*arguments: str) -> None:
    """Let apt-get install packages here, or download them."""
    run("apt-get", "update", "-qq", stdout=sys.stderr)
    run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *arguments, stdout=sys.stderr)


def run(*command: str | pathlib.Path, stdout: IO[Any] | int | None = None) -> None:
    """Run a program of this machine."""
    subprocess.run(command, check=True, stdout=stdout)


def _download(folder: pathlib.Path) -> list[pathlib.Path]:
    """Fetch the packages and all that they depend on, whatever the host has installed."""
    (folder / "partial").mkdir(parents=True)
    (folder / "status").touch()
    options = [f"Dir::State::status={folder}/status", f"Dir::Cache::archives={folder}", "APT::Sandbox::User=root"]
    install("--download-only", *(word for option in options for word in ("-o", option)), *PACKAGES)
    return sorted(folder.glob("*.deb"))


def _unpack(packages: list[pathlib.Path], root: pathlib.Path) -> None:
    """Unpack without installing. No script of a package runs."""
    for part in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / part).mkdir(parents=True)
        (root / part).symlink_to(f"usr/{part}")
    for package in packages:
        archive = package.with_suffix(".tar")
        with archive.open("wb") as stream:
            run("dpkg-deb", "--fsys-tarfile", package, stdout=stream)
        # /bin is a link to /usr/bin, while a few packages still hold a folder of that name.
        run("tar", "-x", "--keep-directory-symlink", "-C", root, "-f", archive)
        archive.unlink()
    # What the packages' scripts would have made.
    (root / "usr/bin/sh").symlink_to("bash")
    (root / "usr/bin/awk").symlink_to("mawk")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vm\n")
    for part in ("doc", "locale", "man"):
        shutil.rmtree(root / "usr/share" / part, ignore_errors=True)


def _select_modules(root: pathlib.Path, boot: pathlib.Path) -> None:
    """Keep those in use of the kernel's 4,000 modules. Those that find a disk are numbered in load order."""
    (tree,) = (root / "lib/modules").iterdir()
    files = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    (boot / "vm/modules").mkdir(parents=True)
    for number, name in enumerate(_with_needed(files, BOOT_MODULES)):
        shutil.copy(files[name], boot / f"vm/modules/{number:02}-{name}.ko")
    kept = _with_needed(files, BOOT_MODULES + MODULES)
    for name in files.keys() - kept.keys():
        files[name].unlink()
    run("depmod", "-b", root, tree.name)


def _with_needed(files: dict[str, pathlib.Path], names: list[str]) -> dict[str, None]:
    """Add the modules that these need, in front of them."""
    order: dict[str, None] = {}
    for name in names:
        needed = re.search(rb"\0depends=([^\0]+)\0", files[name].read_bytes())
        order |= _with_needed(files, needed[1].decode().replace("-", "_").split(",") if needed else [])
        order[name] = None
    return order


def _compile(root: pathlib.Path) -> None:
    """Compile as if the files were where the guest has them. There it would take 20 times as long."""
    command = [sys.executable, "-m", "compileall", "-qq", "-j", "2", "-s", str(root), "-p", "/", str(root)]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def _rewrite(root: pathlib.Path, rewritten: pathlib.Path) -> None:
    """Have pytest rewrite its plugins' assertions here: 20 s of the guest's time.

    It keeps the outcome in files of its own. What is missing is made in the guest, so a failure costs time only.
    """
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    settings["PYTHONPYCACHEPREFIX"] = str(rewritten)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "tests/conformance"]
    subprocess.run(command, cwd=CHECKOUT, env=settings, check=False, capture_output=True)
    for file in rewritten.rglob("*-pytest-*.pyc"):
        folder = root / file.parent.relative_to(rewritten)
        if folder.exists():
            (folder / "__pycache__").mkdir(exist_ok=True)
            shutil.copy(file, folder / "__pycache__")


def _ramdisk(busybox: pathlib.Path, root: pathlib.Path, ramdisk: pathlib.Path) -> None:
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    command = [str(busybox), "cpio", "-o", "-H", "newc"]
    with ramdisk.open("wb") as stream:
        subprocess.run(command, cwd=root, input=names.encode(), stdout=stream, stderr=subprocess.DEVNULL, check=True)


def _ext4(root: pathlib.Path, image: pathlib.Path) -> None:
    """Write the folder as a file system that needs no unpacking and no server to read from."""
    found = [path.lstat() for path in root.rglob("*")]
    nbytes = sum(-(-status.st_size // 4096) * 4096 for status in found) * 21 // 20 + TABLES_NBYTES
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal,^metadata_csum", "-N", str(len(found) + 1000)]
    run("mkfs.ext4", *options, "-d", root, image, f"{nbytes >> 10}k", stdout=subprocess.DEVNULL)


def _digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _state(prefix: str) -> Iterator[str]:
    """Name every file with its size and age."""
    for folder, folders, files in os.walk(prefix):
        folders.sort()
        for file in sorted(files):
            status = (pathlib.Path(folder) / file).lstat()
            yield f"{folder}/{file} {status.st_size} {status.st_mtime_ns}"
