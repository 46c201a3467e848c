"""Where `gpu_check.py` runs things: the Python that is taken, its variables, and processes with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: What the steps import beside torch, by the names under which it is installed.
PACKAGES = ("numpy", "mpmath", "pytest", "typer", "rich", "setuptools", "ninja")
TORCH = (2, 11), (2, 15)  # from, to before: as in pyproject.toml
#: An interrupted process has so long to write what it has.
GRACE = 10.0

# What a Python says of itself, as JSON.
ASK = """
import importlib.util, json, platform, sys
facts = {"python": platform.python_version()}
facts["missing"] = [p for p in sys.argv[1:] if importlib.util.find_spec(p) is None]
facts["xdist"] = importlib.util.find_spec("xdist") is not None
try:
    import torch
except ImportError as error:
    facts["why not"] = f"no torch: {error}"
else:
    facts |= {"torch": torch.__version__, "CUDA of torch": torch.version.cuda}
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        facts |= {"device": found.name, "architecture": f"{found.major}.{found.minor}"}
        facts |= {"multiprocessors": found.multi_processor_count, "memory": found.total_memory}
        facts |= {"L2": found.L2_cache_size, "shared memory a block": found.shared_memory_per_block_optin}
        facts |= {"devices": torch.cuda.device_count(), "cuDNN": torch.backends.cudnn.version()}
print(json.dumps(facts))
"""


@dataclass
class Environment:
    """A Python, what it said of itself, why none works if none does, and what processes of the check get."""

    python: str
    facts: dict[str, Any]
    emulated: bool
    out: Path
    variables: dict[str, str] = field(default_factory=dict)
    select: str = ""
    built: bool = False
    why_not: str = ""

    @property
    def architecture(self) -> str:
        """What to build for: `CUDA_ARCH`, else what the device is."""
        return os.environ.get("CUDA_ARCH") or str(self.facts.get("architecture", ""))

    def run(
        self,
        command: Sequence[Any],
        deadline: float,
        *,
        cwd: Path | None = None,
        changes: Mapping[str, str] | None = None,
        interrupt: bool = False,
        log: str = "",
        good: Sequence[int] = (0,),
    ) -> tuple[str, str]:
        """Runs a command until `deadline` (of `time.monotonic`): passed, which it has with a `good` exit status, failed
        or timed out; and what it printed, which the file `log` has, too.

        It is a process group of its own, which is ended as a whole; with `interrupt`, first as Ctrl-C does it.
        """
        env = {**os.environ, **self.variables, **(changes or {})}
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd or self.out,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )
            status = wait(process, deadline, interrupt, good)
            output.seek(0)
            said = output.read()
            if log:
                (self.out / f"{log}.log").write_text(said, encoding="utf-8")
            return status, said

    def said(self, command: Sequence[Any]) -> str:
        """What a short command prints."""
        return self.run(command, time.monotonic() + 20)[1].strip()


def heed_interrupts() -> None:
    """In a process about to start: nohup and a shell's background jobs pass on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(process: subprocess.Popen[Any], deadline: float, interrupt: bool, good: Sequence[int]) -> str:
    """How a process ends, or is ended."""
    try:
        return "passed" if process.wait(max(deadline - time.monotonic(), 1.0)) in good else "failed"
    except subprocess.TimeoutExpired:
        if interrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "timed out"


def find_program(name: str) -> str | None:
    """A program of the CUDA toolkit or the system, by name."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), toolkit_of_nvcc(), "/usr/local/cuda"]
    places = [Path(root) / folder for root in roots if root for folder in ("bin", name)]
    return shutil.which(name) or next((found for p in places if (found := shutil.which(name, path=str(p)))), None)


def toolkit_of_nvcc() -> str | None:
    """The toolkit's root, as nvcc itself says it."""
    if shutil.which("nvcc") is None:
        return None
    said = subprocess.run(["nvcc", "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
    here = re.search(r"_HERE_=(.*)", said)
    return str(Path(here[1]).parent) if here else None


def ask(python: str) -> dict[str, Any]:
    """Facts about a Python; why not, where it does not run."""
    try:
        done = subprocess.run([python, "-c", ASK, *PACKAGES], capture_output=True, text=True, timeout=60, check=False)
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"why not": f"{type(error).__name__}: {error}"}
    return facts


def why_not(facts: Mapping[str, Any], emulated: bool) -> str:
    """Why a Python cannot run the check; empty if it can."""
    if "why not" in facts:
        return str(facts["why not"])
    version = tuple(int(part) for part in re.findall(r"\d+", facts["torch"])[:2])
    if not TORCH[0] <= version < TORCH[1]:
        return f"torch {facts['torch']} is not one that the package is written for"
    if emulated:
        return f"no {', '.join(facts['missing'])}" if facts["missing"] else ""
    return "" if "device" in facts else f"torch {facts['torch']} finds no CUDA device"


def find_environment(pythons: Sequence[str], target: str, emulated: bool, out: Path) -> Environment:
    """The first Python that works; else the one that `make target` makes; else why there is none."""
    remarks: list[str] = []
    for python in [*pythons, target]:
        if python == target and target and not Path(python).exists():
            print(f"making an environment: {'; '.join(remarks)}", flush=True)
            subprocess.run(["make", str(Path(target).parent.parent / ".ready")], cwd=ROOT, check=False, timeout=240)
        found = shutil.which(python) if python else None
        if found is None:
            continue
        found = os.path.abspath(found)  # not resolved: a virtual environment's Python is a link
        facts = ask(found)
        why = why_not(facts, emulated)
        if not why:
            return with_packages(Environment(found, facts, emulated, out))
        remarks.append(f"{python}: {why}")
    why = "no Python works: " + "; ".join(remarks)
    return Environment(pythons[0], {"why": why}, emulated, out, why_not=why)


def with_packages(env: Environment) -> Environment:
    """What the Python lacks, installed beside the build and not into it; and the build, for imports."""
    packages = env.out / "packages"
    if env.facts["missing"]:
        command = [env.python, "-m", "pip", "install", "--quiet", "--target", packages, *env.facts["missing"]]
        status, said = env.run(command, time.monotonic() + 60)
        print(f"installing {', '.join(env.facts['missing'])}: {status}", flush=True)
        env.facts["packages"] = f"{status}: {tail(said, 500)}"
    paths = [str(env.out / "site"), str(packages)] if not env.emulated else [str(ROOT)]
    env.variables["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    programs = [str(packages / "bin"), str(Path(env.python).parent), os.environ.get("PATH", "")]
    env.variables["PATH"] = os.pathsep.join(programs)
    return env


def tail(text: str, characters: int = 3000) -> str:
    """The end of an output, without places of this machine."""
    for place, word in ((str(ROOT), "."), (str(Path.home()), "~")):
        text = text.replace(place, word)
    text = re.sub(r"[^\s\"']*/site-packages/", "", text)
    return text[-characters:].strip()
