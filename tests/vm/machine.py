"""Process of one virtual machine: started, limited in time, and always stopped."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import threading

import clock

TIMED_OUT = 124
"""As timeout(1) says it."""
BROKEN = 125
"""The guest ended before the command did."""
KERNEL = [
    *("console=ttyS0", "quiet", "loglevel=4", "panic=-1"),
    # The emulated time-stamp counter is steady. A kernel that doubts it asks a slow device for the time.
    *("tsc=reliable", "no_timer_check"),
    *("mitigations=off", "nokaslr", "audit=0", "apparmor=0"),
]
CPU = "max,-avx,-avx2,-f16c,-fma"
"""QEMU 7.2 emulates AVX2 wrongly: NumPy's argsort is wrong for 36 of 199 permutations, and for none without."""
NOTABLE = ("BUG:", "Call Trace:", "Oops", "Kernel panic", "WARNING:", "vm:")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What to boot.

    :param images: disks, in the order that the guest's ``init`` mounts them
    :param memory: as QEMU writes it, such as ``3G``
    """

    kernel: pathlib.Path
    ramdisk: pathlib.Path
    images: list[pathlib.Path]
    cpus: int
    memory: str

    def command_line(self, console: pathlib.Path, status: pathlib.Path) -> list[str]:
        """Say how to start QEMU. Its standard output is the command's output and nothing else."""
        # A death signal, since nobody else would end the machine of a killed parent.
        kernel = [*KERNEL, f"tsc_early_khz={clock.tsc_khz()}"]
        line = ["nice", "-n", "5", "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
        line += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35"]
        line += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU, "-smp", str(self.cpus), "-m", self.memory]
        line += ["-kernel", str(self.kernel), "-initrd", str(self.ramdisk), "-append", " ".join(kernel)]
        line += ["-serial", f"file:{console}", "-device", "virtio-serial-pci"]
        line += ["-chardev", "stdio,id=output,signal=off", "-device", "virtserialport,nr=1,chardev=output"]
        line += ["-chardev", f"file,id=status,path={status}", "-device", "virtserialport,nr=2,chardev=status"]
        for number, image in enumerate(self.images):
            line += ["-drive", f"if=none,id=disk{number},format=raw,readonly=on,file={image}"]
            line += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        return line

    def run(self, console: pathlib.Path, status: pathlib.Path, timeout_s: float) -> int:
        """Boot, pass the command's output on, and return its exit status.

        :param console: file for what the kernel says
        :param status: file for the exit status
        :returns: 124 when the time was over, 125 when the guest broke down
        """
        timed_out = _pass_on(self.command_line(console, status), timeout_s)
        said = status.read_text().strip() if status.exists() else ""
        messages = console.read_text(errors="replace").splitlines() if console.exists() else []
        for message in messages:
            if not said or any(word in message for word in NOTABLE):
                say(message)
        if timed_out:
            say(f"vm: stopped after {timeout_s:.0f} s")
            return TIMED_OUT
        return int(said) if said else BROKEN


def say(message: str) -> None:
    """Tell the user, away from the command's output."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _pass_on(command: list[str], timeout_s: float) -> bool:
    """Run to the end or to the time limit; say whether the limit was hit."""
    # Its input stays open and silent: QEMU takes the end of input for the end of output too.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    timed_out = threading.Event()

    def stop() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(timeout_s, stop)
    timer.start()
    try:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return timed_out.is_set()
