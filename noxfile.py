#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.5"]
# ///
"""Every check of the project. ``nox`` runs what CI runs; ``nox -l`` lists the rest."""

from __future__ import annotations

import os
import pathlib
import shutil

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests", "docs", "demo", "verbs-slice"]
nox.options.reuse_existing_virtualenvs = True
# A Python that is not installed is skipped, also where CI makes nox strict about it.
nox.options.error_on_missing_interpreters = False

INSTALLED = {"PYTHONSAFEPATH": "1"}
"""No Python started from the checkout, nor one that a test starts, imports the checkout instead of the package."""
SLICE = [
    *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--timeout", "300"),
    *("--durations", "5", "tests/verbs", "tests/interop", "tests/conformance/test_conformance.py", "-k"),
    "test_verbs_peer and cable or asyncio and (one_of_two or no_cable) or trio and (verbs-writes or verbs-failures)",
]
"""What of the tests of verbs is worth its minutes in every run: both of them, in a machine that is emulated."""
PYTHONS = ["3.11", "3.12", "3.13"]
PYPROJECT = nox.project.load_toml("pyproject.toml")
CORE = sorted(pathlib.Path("backends/core").glob("*.cpp"))
NATIVE_FOLDERS = ("aio_transfer/bench/baselines", "tests/efa_emulator", "tests/abi")
REGISTRY = pathlib.Path("backends/core/native_backend.cpp")
TCP = [*sorted(pathlib.Path("backends/tcp").glob("*.cpp")), REGISTRY]
LIBFABRIC = [*sorted(pathlib.Path("backends/libfabric").glob("*.cpp")), REGISTRY]
STUBS = {
    "aio_transfer.backends.native._native": pathlib.Path("backends/native/_native.pyi"),
    "aio_transfer.bench.baselines._baseline": pathlib.Path("aio_transfer/bench/baselines/_baseline.pyi"),
}


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def install(session: nox.Session, *groups: str, extras: str = "[libfabric]", strict: bool = False) -> None:
    """Install the package as a user would: a wheel, away from the checkout."""
    settings = ["-Ccmake.define.AIO_TRANSFER_STRICT=ON"] if strict else []
    for name in groups:
        session.install(*group(name))
    session.install(f".{extras}", *settings)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of Python and C++."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    folders = [*pathlib.Path("backends").iterdir(), *map(pathlib.Path, NATIVE_FOLDERS)]
    sources = [str(path) for folder in folders for path in folder.glob("*.*") if path.suffix in {".h", ".cpp"}]
    session.run("clang-format", "--dry-run", "--Werror", *sorted(sources))


@nox.session
def types(session: nox.Session) -> None:
    """Strict types: the package, the native stub, and the API as a user meets it."""
    install(session, "types", strict=True)
    session.run("mypy")
    for module, stub in STUBS.items():
        made = pathlib.Path(session.create_tmp()) / stub.name
        with session.chdir(made.parent):  # not the checkout, which stubgen would import
            session.run("python", "-m", "nanobind.stubgen", "-q", "-m", module, "-o", stub.name)
        if made.read_text() != stub.read_text():
            session.error(f"{stub} is not what the built module says: copy {made} over it")
        allowed = pathlib.Path("tests/typing/stubtest_allowlist.txt").resolve()
        with session.chdir(session.create_tmp()):
            session.run(
                "python", "-m", "mypy.stubtest", module, "--allowlist", str(allowed), "--ignore-unused-allowlist"
            )
    session.run("mypy", "--strict", "tests/typing")


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that CI tests: unit, conformance on every backend that can run here, two processes, examples."""
    install(session, "test")
    run_tests(session)


def run_tests(session: nox.Session) -> None:
    """Most tests wait for a peer most of the time, so two run at once; those that measure pauses run alone."""
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs, env=INSTALLED)
        return
    measuring = "tests/processes"
    session.run("python", "-m", "pytest", "-q", "-n", "2", f"--ignore={measuring}", env=INSTALLED)
    session.run("python", "-m", "pytest", "-q", measuring, env=INSTALLED)


@nox.session(python=PYTHONS, default=False)
def versions(session: nox.Session) -> None:
    """The tests on every Python that is supported and installed here."""
    install(session, "test")
    run_tests(session)


@nox.session(default=False)
def conformance(session: nox.Session) -> None:
    """The conformance suite alone, many times in a row: ``nox -s conformance -- 20 -k "shm or libfabric-tcp"``."""
    install(session, "test")
    times, *options = session.posargs or ["20"]
    suite = ["tests/conformance", "tests/asyncio_only"]
    for _ in range(int(times)):
        session.run("python", "-m", "pytest", "-q", "-x", "-n", "2", *options, *suite, env=INSTALLED)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Random schedules on the simulated fabric: 100,000, in 15 minutes at most; ``-- --seconds 60 --seed 7``."""
    install(session, "test")
    options = session.posargs or ["--count", "100000", "--seconds", "900"]
    session.run("python", "tests/chaos/chaos.py", *options, env=INSTALLED)


@nox.session(default=False)
@nox.parametrize("devices", [1, 2, 4])
def efa(session: nox.Session, devices: int) -> None:
    """libfabric's own efa provider on emulated devices: the conformance suite, and the domain without the core."""
    install(session, "test")
    directory = session.create_tmp()
    inside = ["python", "tests/efa_emulator/emulator.py", directory]
    settings = INSTALLED | {"EFA_EMULATOR_DEVICES": str(devices)}
    if devices == 1:
        settings |= {"EFA_EMULATOR_MEASURE": "1"}
    options = session.posargs or ["-q", "--timeout", "120"]
    session.run(*inside, "python", "-m", "pytest", "tests/efa", *options, env=settings)
    if session.posargs:
        return
    # The provider's other fabric keeps buffers for every slot of the device's queues.
    other = settings | {"EFA_FABRIC": "efa", "EFA_EMULATOR_SEND_DEPTH": "512", "EFA_EMULATOR_RECEIVE_DEPTH": "1024"}
    session.run(*inside, "python", "-m", "pytest", "tests/efa/test_efa_conformance.py", *options, env=other)
    if devices == 4:  # noqa: PLR2004
        slow = settings | {"EFA_EMULATOR_BYTES_PER_SECOND": "8000000"}
        session.run(*inside, "python", "-m", "pytest", "tests/efa/test_efa_mutants.py", *options, env=slow)
    if devices == 1:
        session.run(*inside, post_overhead(session), "efa", wheel_library(session), env=settings)
        program = libfabric_test(session)
        for environment in (settings, other | {"FABRIC": "efa"}):
            session.run(*inside, program, "efa", wheel_library(session), env=environment)


@nox.session(name="verbs-vm", default=False)
def verbs_vm(session: nox.Session) -> None:
    """All of verbs on Soft-RoCE in a virtual machine, or a command there: ``nox -s verbs-vm -- ibv_devinfo``."""
    session.run("python", "tests/vm", "--prepare", env=INSTALLED)
    install(session, "test")
    session.run("python", "tests/vm", *session.posargs, env=INSTALLED)


@nox.session(name="verbs-slice")
def verbs_slice(session: nox.Session) -> None:
    """What a few minutes show of verbs on Soft-RoCE; skipped where the virtual machine cannot run."""
    cannot = "vm: cannot run here"
    said = session.run("python", "tests/vm", "--prepare", env=INSTALLED, success_codes=[0, 77], silent=True)
    if cannot in str(said):
        session.skip(str(said)[str(said).index(cannot) :].strip())
    install(session, "test")
    session.run("python", "tests/vm", "--timeout", "600", *SLICE, env=INSTALLED)


@nox.session
def docs(session: nox.Session) -> None:
    """Documentation site, with warnings as errors: tutorial, how-to guides, reference, explanation."""
    install(session, "test", "docs")
    session.run("python", "-m", "pytest", "-q", "tests/docs/test_site.py", env=INSTALLED)
    site = session.create_tmp()
    session.run("mkdocs", "build", "--strict", "-q", "-d", site, env=INSTALLED | {"NO_MKDOCS_2_WARNING": "1"})
    session.log(f"the site begins at {site}/index.html")


@nox.session
def demo(session: nox.Session) -> None:
    """The main job, on every backend and with two prefill processes."""
    install(session)
    for options in ([], ["--backend", "libfabric"], ["--backend", "tcp"], ["--prefills", "2"]):
        session.run("aio-transfer", "demo", "--json", *options)


def apt_install(session: nox.Session, *packages: str) -> None:
    """Install Debian packages, or say which command would."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        session.error(f"this is missing: apt-get install {' '.join(packages)}")
    session.run("apt-get", "install", "-y", "-q", *packages, external=True)


@nox.session(default=False)
def abi(session: nox.Session) -> None:
    """Our declarations against the real headers (Debian: libfabric-dev, libibverbs-dev)."""
    headers = {"libfabric-dev": "rdma/fabric.h", "libibverbs-dev": "infiniband/efadv.h"}
    missing = [package for package, header in headers.items() if not pathlib.Path("/usr/include", header).exists()]
    if missing:
        apt_install(session, *missing)
    version = session.run("pkg-config", "--modversion", "libefa", external=True, silent=True)
    rdma_core = str(version).split(".")[2]  # 1.2.44.0 is that of rdma-core 44
    for check, *flags in (["libfabric_check"], ["verbs_check"], ["efa_check", f"-DRDMA_CORE={rdma_core}"]):
        program = str(pathlib.Path(session.create_tmp()) / check)
        command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", *flags, f"tests/abi/{check}.cpp", "-o", program]
        session.run(*command, external=True)
        session.run(program, external=True)


def wheel_library(session: nox.Session) -> str:
    """Return the libfabric of the mpich wheel in the session's environment."""
    return str(pathlib.Path(session.virtualenv.location, "lib/mpich/libfabric.so.1"))


def compile_test(
    session: nox.Session, name: str, sources: list[pathlib.Path], kind: str = "", *, optimize: str = "-O1"
) -> str:
    """Compile a test of native code without Python; ``kind`` is a sanitizer."""
    program = str(pathlib.Path(session.create_tmp()) / name)
    sanitize = [f"-fsanitize={kind}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if kind else []
    flags = ["-std=c++20", "-g", optimize, "-Wall", "-Wextra", "-Wconversion", "-Werror", *sanitize]
    paths = [*map(str, sources), f"tests/native/{name}.cpp"]
    session.run("g++", *flags, *paths, "-ldl", "-o", program, external=True)
    return program


def libfabric_test(session: nox.Session, kind: str = "") -> str:
    """Compile the test of libfabric's domain: the main program and one file per topic."""
    topics = sorted(pathlib.Path("tests/native/libfabric").glob("*.cpp"))
    return compile_test(session, "libfabric_test", [*LIBFABRIC, *topics], kind)


def post_overhead(session: nox.Session) -> str:
    """Compile the measurement of what a page costs in libfabric's domain."""
    return compile_test(session, "post_overhead", LIBFABRIC, optimize="-O3")


@nox.session(default=False)
@nox.parametrize("kind", ["", "address,undefined"], ids=["plain", "address,undefined"])
def native(session: nox.Session, kind: str) -> None:
    """The domains of tcp and libfabric alone (``LIBFABRIC=path``: another one), parts of verbs, shm and the core."""
    session.install(PYPROJECT["project"]["optional-dependencies"]["libfabric"][0])
    library = os.environ.get("LIBFABRIC") or wheel_library(session)
    session.run(compile_test(session, "tcp_test", TCP, kind), external=True)
    program = libfabric_test(session, kind)
    for provider in ("tcp", "tcp;ofi_rxm"):
        session.run(program, provider, library, external=True)
    session.run(compile_test(session, "verbs_test", [pathlib.Path("backends/verbs/gid.cpp")], kind), external=True)
    session.run(compile_test(session, "copy_tuner_test", [], kind), external=True)
    session.run(compile_test(session, "parking_test", CORE, kind), external=True)


@nox.session(default=False)
@nox.parametrize("kind", ["address,undefined", "thread"])
def sanitizers(session: nox.Session, kind: str) -> None:
    """The native tests and the conformance suite under ASan+UBSan, and under TSan."""
    session.install(*group("test"))
    session.install(".[libfabric]", f"-Ccmake.define.AIO_TRANSFER_SANITIZE={kind}", "-Cbuild-dir=build/{wheel_tag}-san")
    runtime = "libtsan.so" if kind == "thread" else "libasan.so"
    # The C++ library as well: a sanitizer that is loaded before it finds nothing to throw with.
    found = [
        str(session.run("g++", f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in (runtime, "libstdc++.so.6")
    ]
    session.run(
        "python",
        "-P",
        "-m",
        "pytest",
        "-q",
        "--timeout",
        "120",
        "tests/conformance",
        "-k",
        "asyncio",
        env={
            "LD_PRELOAD": " ".join(found),
            "ASAN_OPTIONS": "detect_leaks=0",
            "TSAN_OPTIONS": "report_bugs=1",
        },
    )


@nox.session(default=False)
def instructions(session: nox.Session) -> None:
    """What a page, a write and a scatter's target cost in instructions, against the record (Debian: valgrind)."""
    if shutil.which("valgrind") is None:
        apt_install(session, "valgrind")
    session.run("python", "benchmarks/instructions.py")


@nox.session(default=False)
def bars(session: nox.Session) -> None:
    """Every bar of speed and the figure beside it, 10 minutes: ``nox -s bars -- scatter`` runs those of scatters."""
    install(session, extras="[libfabric,uvloop]")
    session.run("python", "benchmarks/bars.py", *session.posargs, env=INSTALLED)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The benchmarks: ``nox -s bench -- pages --backend shm``."""
    install(session)
    session.run("aio-transfer", "bench", *(session.posargs or ["all"]))


if __name__ == "__main__":
    nox.main()
