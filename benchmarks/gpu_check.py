"""Everything that a card can tell about the CUDA backend, in under ten minutes: `make gpu-check`.

Builds for the device that is there, runs the tests marked `cuda`, compute-sanitizer's four tools, the benchmark beside
cuDNN, and a profile by kernel. Writes gpu-check.json and gpu-check.md; what is in one is in the other, but for the
numbers behind the benchmark's rows; gpu-check/ has what the programs printed. A step has its share of the time and what
earlier steps left of theirs; one that fails or runs out of it does not stop the next. Ends with 1 where build, tests or
sanitizer failed.

It needs Python alone. What it runs needs torch with CUDA, nvcc and g++: the first --python that has such a torch is
taken, as it is; what else is missing is installed beside the build. `--emulated` does the same on the emulated device,
in an environment where the package is built in place.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gpu_environment import ROOT, Environment, find_environment, find_program, tail
from gpu_report import markdown, sanitizer_errors, summary_of_tests

TESTS = ("test_cuda.py", "test_cuda_device.py", "test_cuda_lengths.py")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: For each of these files, where pytest-xdist is installed.
PROCESSES = 3
#: What pytest ends with where --select leaves nothing of a file.
NO_TESTS = 5
#: Bounds of one row's measurement in seconds. What comes before takes as long again, and several seconds pass before a
#: run's first row: a grid of 64 takes half a minute, which all dtypes cannot have, the 20 of CASES about 15 s.
ROW_BUDGET = "0.2"
#: In the dtypes that do not get the whole grid: each plan, the latency of one row, the speed of GEMMs.
CASES = ("1024,16,768,768", "256,16,128,128", "256,1,256,256", "256,64,512,512", "256,128,1024,1024")
#: As CUDA graphs of both layers: shapes whose time is launches and steps.
GRAPHS = ("256,1,256,256", "256,16,256,256", "1024,16,768,768")


class Step(NamedTuple):
    """A part of the check: seconds that it may take, and whether the whole fails with it."""

    name: str
    seconds: float
    run: Callable[[Environment, float], dict[str, Any]]
    counts: bool


def worst(statuses: list[str]) -> str:
    """Of several parts of a step."""
    return next(status for status in ("failed", "timed out", "passed") if status in statuses)


def share(deadline: float, parts: int) -> float:
    """The end of the next of so many equal parts of what time is left."""
    now = time.monotonic()
    return now + (deadline - now) / parts


def facts(env: Environment, _deadline: float) -> dict[str, Any]:
    """What the machine has: device, driver, torch, compilers."""
    found = dict(env.facts)
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,persistence_mode,mig.mode.current"
    if find_program("nvidia-smi"):
        found["nvidia-smi"] = env.said(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"])
    for program, option in (("nvcc", "--version"), ("g++", "--version")):
        found[program] = env.said([program, option]) if find_program(program) else "not found"
    return {"status": "failed" if env.why_not else "passed", **found}


def build(env: Environment, deadline: float) -> dict[str, Any]:
    """The package with kernels for this device alone; emulated: the library that takes the place of one."""
    if env.built:
        found = env.out / "site" / "lstm_fused" / "_C.so"
        return {"status": "passed" if found.exists() else "failed", "why": "--built: made before this check"}
    if env.emulated:
        code = "import emulated; print(emulated.library())"
        status, said = env.run([env.python, "-c", code], deadline, cwd=ROOT / "tests")
        env.variables["LSTM_FUSED_LIBRARY"] = said.strip().splitlines()[-1] if status == "passed" else "none"
        return {"status": status, "output": tail(said)}
    command = [env.python, "setup.py", "--quiet", "build", "-b", env.out / "base", "--build-lib", env.out / "site"]
    command += ["build_ext", "-t", env.out / "temp"]
    changes = {"LSTM_FUSED_CUDA": "1", "TORCH_CUDA_ARCH_LIST": env.architecture}
    status, said = env.run(command, deadline, cwd=ROOT, changes=changes, log="build")
    return {"status": status, "architecture": env.architecture, "output": tail(said)}


def tests(env: Environment, deadline: float) -> dict[str, Any]:
    """`pytest -m cuda`, the files side by side, each in processes of its own, from which a kernel that faults takes the
    device. A run in which nothing is selected or everything skipped has failed.
    """
    results = [env.out / f"{name}.xml" for name in TESTS]

    def tested(name: str, result: Path) -> tuple[str, str]:
        result.unlink(missing_ok=True)
        command = [env.python, "-m", "pytest", ROOT / "tests" / name, "-m", "cuda", "-p", "no:cacheprovider"]
        command += [f"--junitxml={result}", "-o", "faulthandler_timeout=40"]  # says where it hangs
        command += ["-n", str(PROCESSES)] if env.facts.get("xdist") and not env.emulated else []
        command += ["-k", env.select] if env.select else []
        return env.run(command, deadline, interrupt=True, log=name, good=(0, NO_TESTS))

    with ThreadPoolExecutor(1 if env.emulated else len(TESTS)) as pool:
        statuses, outputs = zip(*pool.map(tested, TESTS, results), strict=True)
    counts = summary_of_tests(results)
    status = worst([*statuses, *([] if counts["passed"] else ["failed"])])
    return {"status": status, **counts, "output": "\n\n".join(map(tail, outputs))}


def sanitizer(env: Environment, deadline: float) -> dict[str, Any]:
    """The four tools at once, over every kernel on tiny layers; emulated: all checks of the PTX runner."""
    driver = [env.python, ROOT / "tests" / "cuda_cases.py"]
    if env.emulated:
        status, said = env.run([*driver, "--few"], deadline, changes={"PTX_CHECK": "all", "PTX_SEED": "1"})
        return {"status": status, "tools": {"PTX_CHECK=all": {"status": status, "output": tail(said)}}}
    program = find_program("compute-sanitizer")
    if program is None:
        return {"status": "skipped", "why": "compute-sanitizer was not found"}

    def checked(tool: str) -> dict[str, Any]:
        # What a call of the API returns is for the caller to judge, and vendors' libraries probe with some.
        options = ["--tool", tool, "--error-exitcode", "99", "--print-limit", "20", "--report-api-errors", "no"]
        if tool in ("racecheck", "synccheck"):  # the others have to see what all kernels write
            options += ["--kernel-regex", "kns=lstm_fused"]
        changes = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation, whose ends are watched
        status, said = env.run([program, *options, *driver, "--few"], deadline, changes=changes, log=tool)
        ours, others = sanitizer_errors(said)
        if status == "failed" and tool == "initcheck" and not ours and others and ": 0 wrong" in said:
            status = "passed"  # the vendor's libraries read what they do not use
        return {"status": status, "errors": ours, "errors of other kernels": others, "output": tail(said)}

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        found = dict(zip(TOOLS, pool.map(checked, TOOLS), strict=True))
    return {"status": worst([one["status"] for one in found.values()]), "tools": found}


def options(cases: Sequence[str]) -> list[str]:
    """Of a run of these cases, for either cell."""
    return [word for case in cases for word in ("--case", case)]


def benchmark(env: Environment, deadline: float) -> dict[str, Any]:
    """`lstm-fused bench --device cuda`, one run after the other, each with its part of what time is left.

    The whole grid, in float16, is last and has what the others leave: they need less than their parts.
    """
    program: list[Any] = [env.python, "-m", "lstm_fused.cli", "bench", "--device", "cuda", "--budget", ROW_BUDGET]
    runs = {dtype: ["--dtype", dtype, *options(CASES)] for dtype in ("bfloat16", "tf32", "float32")}
    runs["float16, graphs"] = ["--dtype", "float16", "--graphs", *options(GRAPHS)]
    runs["float16"] = ["--dtype", "float16", "--grid", "cuda"]
    if env.emulated:
        program[1:3] = [ROOT / "tests" / "emulated_bench.py"]
        runs = {"float32": ["--case", "3,2,4,8", "--cell", "lstm"], "tf32, graphs": ["--case", "3,2,4,8", "--graphs"]}
        runs["tf32, graphs"] += ["--dtype", "tf32", "--cell", "gru", "--mode", "inference"]
    found: dict[str, Any] = {}
    for k, (name, words) in enumerate(runs.items()):
        file = env.out / f"bench-{k}.json"
        file.unlink(missing_ok=True)
        until = share(deadline, len(runs) - k)
        status, said = env.run([*program, *words, "--json", file], until, interrupt=True, log=f"bench-{k}")
        report = json.loads(file.read_text()) if file.exists() else None
        found[name] = {"status": status, "report": report, **({} if report else {"output": tail(said)})}
    return {"status": worst([one["status"] for one in found.values()]), "runs": found}


def profile(env: Environment, deadline: float) -> dict[str, Any]:
    """Time by kernel."""
    if env.emulated:
        return {"status": "skipped", "why": "emulated"}
    status, said = env.run([env.python, ROOT / "benchmarks" / "gpu_profile.py"], deadline, log="profile")
    return {"status": status, "output": tail(said, 12_000)}


STEPS = (
    Step("facts", 15, facts, True),
    Step("build", 210, build, True),
    Step("tests", 140, tests, True),
    Step("sanitizer", 75, sanitizer, True),
    Step("benchmark", 120, benchmark, False),
    Step("profile", 20, profile, False),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Checks the CUDA backend on a card; one JSON and one Markdown file.")
    parser.add_argument("--python", action="append", default=[], help="to try, in this order (default: this one)")
    parser.add_argument("--make", default="", help="make target of an environment, and the Python in it, if none works")
    parser.add_argument("--emulated", action="store_true", help="on the emulated device")
    parser.add_argument(
        "--only", action="append", choices=[s.name for s in STEPS], help="steps besides facts and build"
    )
    parser.add_argument("--built", action="store_true", help="OUT/gpu-check/site has the package: do not build it")
    parser.add_argument("--select", default="", help="pytest's -k, for all files")
    parser.add_argument("--scale", type=float, default=1.0, help="of each step's share of the time")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder of the two files")
    return parser.parse_args()


def run_steps(env: Environment, asked: argparse.Namespace, began: float) -> Iterator[tuple[Step, dict[str, Any]]]:
    """Each step asked for and what it found, whatever the others did; without a Python or a build no other runs."""
    deadline, failed = began, ""
    for step in STEPS:
        deadline += step.seconds * asked.scale
        if asked.only and step.name not in ("facts", "build", *asked.only):
            continue
        start = time.monotonic()
        try:
            result = {"status": "skipped", "why": f"{failed} failed"} if failed else step.run(env, deadline)
        except Exception as error:  # whatever it is, the other steps have something to say
            result = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        if step.name in ("facts", "build") and result["status"] != "passed":
            failed = failed or step.name
        yield step, {**result, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    """Runs the steps, writes both files after each, and says which failed."""
    asked, began = arguments(), time.monotonic()
    out = asked.out.resolve() / "gpu-check"
    out.mkdir(parents=True, exist_ok=True)
    env = find_environment(asked.python or [sys.executable], asked.make, asked.emulated, out)
    env.select, env.built = asked.select, asked.built
    found: dict[str, Any] = {"passed": True, "emulated": asked.emulated, "seconds": 0.0, "steps": {}}
    bad = []
    for step, result in run_steps(env, asked, began):
        print(f"{step.name}: {result['status']}, {result['seconds']} s", flush=True)
        if step.counts and result["status"] in ("failed", "timed out"):
            bad.append(step.name)
        found["steps"][step.name] = result
        found |= {"passed": not bad, "seconds": round(time.monotonic() - began, 1)}
        (out.parent / "gpu-check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out.parent / "gpu-check.md").write_text(markdown(found), encoding="utf-8")
    print("wrote gpu-check.json and gpu-check.md" + (f"; failed: {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
