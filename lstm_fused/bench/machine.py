"""What the benchmark says about the machine it ran on: enough to read a number, nothing that names a host."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

#: Where the system does not tell: sizes that a small laptop has, marked as assumed in the report.
ASSUMED_CACHES = {1: 32 * 1024, 2: 512 * 1024, 3: 16 * 1024 * 1024}


@dataclass(frozen=True)
class Caches:
    """Bytes of data cache that one core sees at each level, and how many cores share the last one."""

    l1: int
    l2: int
    l3: int
    l3_shared_by: int
    assumed: bool = False


@dataclass(frozen=True)
class Machine:
    """CPU, caches, software and threads of a run."""

    cpu: str
    system: str
    cores: int
    caches: Caches
    threads: int
    isa: str
    isas_available: tuple[str, ...]
    torch: str
    python: str
    lstm_fused: str
    load: float = 0.0  # processes that wanted a core in the last minute, as the run began

    @property
    def busy(self) -> bool:
        """Whether something else was running: times taken then say little."""
        return self.load > 0.5


def parse_size(text: str) -> int:
    """Bytes from the kernel's notation: `32K`, `512K`, `32M`, or a plain number."""
    text = text.strip()
    units = {"K": 1024, "M": 1024**2, "G": 1024**3}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def count_list(text: str) -> int:
    """How many CPUs a kernel list such as `0-3,8-11` names."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


def read_caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> Caches:
    """Data and unified caches of the first core as Linux reports them; assumed sizes elsewhere."""
    sizes: dict[int, int] = {}
    shared = os.cpu_count() or 1
    try:
        for index in sorted(root.glob("index*")):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            sizes[level] = parse_size((index / "size").read_text())
            if level == 3:
                shared = count_list((index / "shared_cpu_list").read_text())
    except (OSError, ValueError):
        sizes = {}
    assumed = 1 not in sizes or 2 not in sizes
    found = {**ASSUMED_CACHES, **sizes} if assumed else {3: sizes[2], **sizes}  # no L3: L2 is the last level
    return Caches(found[1], found[2], found[3], shared, assumed)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def describe(threads: int) -> Machine:
    """The machine as it is now, with the instruction set that lstm_fused has chosen."""
    import torch

    import lstm_fused
    from lstm_fused import runtime

    return Machine(
        cpu=cpu_model(),
        system=f"{platform.system()} {platform.machine()}",
        cores=len(usable_cores()),
        caches=read_caches(),
        threads=threads,
        isa=runtime.isa(),
        isas_available=tuple(runtime.available_isas()),
        torch=torch.__version__,
        python=platform.python_version(),
        lstm_fused=lstm_fused.__version__,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )
