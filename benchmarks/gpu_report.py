"""What `gpu_check.py` found, in Markdown; and what other programs' outputs say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

#: Lines of one failure, and failures, that are shown.
LINES, FAILURES = 12, 30


def summary_of_tests(results: Sequence[Path]) -> dict[str, Any]:
    """Counts of those of pytest's XML files that are there, failures with their first lines, reasons of skips."""
    cases = [case for file in results if file.exists() for case in ElementTree.parse(file).iter("testcase")]
    failures: list[dict[str, str]] = []
    skips: dict[str, int] = {}
    for case in cases:
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                said = "\n".join((found.get("message") or found.text or "").splitlines()[:LINES])
                failures.append({"test": str(case.get("name")), "said": said})
        for found in case.iter("skipped"):
            why = str(found.get("message"))
            skips[why] = skips.get(why, 0) + 1
    slowest = sorted(cases, key=lambda case: -float(case.get("time") or 0))[:5]
    return {
        "passed": len(cases) - len(failures) - sum(skips.values()),
        "failed": len(failures),
        "skipped": skips,
        "failures": failures[:FAILURES],
        "slowest": {str(case.get("name")): float(case.get("time") or 0) for case in slowest},
    }


def sanitizer_errors(said: str) -> tuple[int, int]:
    """How many reports of compute-sanitizer are about kernels of this package, and how many about others'.

    A report is a line of its own, and below it, further indented, the kernel it is about. Errors of API calls name none
    and count as this package's.
    """
    ours = others = 0
    reports = re.split(r"^========= (?=\S)", said, flags=re.M)[1:]
    for report in reports:
        if re.match(
            r"COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY|LEAK SUMMARY|Target application|Error: No", report
        ):
            continue
        if not re.search(r"^=========\s{2,}", report, re.M):
            continue  # a remark
        kernels = re.findall(r"^=========\s+at (.*)$", report, re.M)
        if kernels and not any("lstm_fused" in kernel for kernel in kernels):
            others += 1
        else:
            ours += 1
    return ours, others


def markdown(found: Mapping[str, Any]) -> str:
    """The whole check as a page."""
    title = "# GPU check" + (" on the emulated device: not a speed" if found["emulated"] else "")
    lines = [title, "", f"{'passed' if found['passed'] else '**failed**'} in {found['seconds']:.0f} s", ""]
    lines += ["| step | status | s |", "|---|---|---|"]
    lines += [f"| {name} | {step['status']} | {step['seconds']} |" for name, step in found["steps"].items()]
    sections = {"tests": test_lines, "sanitizer": sanitizer_lines, "benchmark": benchmark_lines}
    for name, step in found["steps"].items():
        lines += ["", f"## {name}", "", *sections.get(name, plain_lines)(step)]
    return "\n".join(lines) + "\n"


def plain_lines(step: Mapping[str, Any]) -> Iterator[str]:
    """A list of what is known, long texts as blocks."""
    for key, value in step.items():
        if key in ("status", "seconds") or value in ("", [], None):
            continue
        if "\n" in str(value):
            yield from (f"- {key}:", "", "```", str(value), "```", "")
        else:
            yield f"- {key}: {value}"


def test_lines(step: Mapping[str, Any]) -> Iterator[str]:
    """Counts, skips, failures; the end of the output where that says more."""
    if "failures" not in step:
        yield from plain_lines(step)
        return
    yield f"{step['passed']} passed, {step['failed']} failed, {sum(step['skipped'].values())} skipped"
    yield ""
    yield from (f"- skipped {count}: {why}" for why, count in step["skipped"].items())
    yield "- slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in step["slowest"].items())
    for failure in step["failures"]:
        yield from ("", f"`{failure['test']}`", "", "```", failure["said"], "```")
    if step["status"] == "timed out" or not step["passed"]:
        yield from ("", "```", step["output"], "```")


def sanitizer_lines(step: Mapping[str, Any]) -> Iterator[str]:
    """Each tool's verdict, and what it said if it is not a good one."""
    if "tools" not in step:
        yield from plain_lines(step)
        return
    for tool, found in step["tools"].items():
        counts = ""
        if "errors" in found:
            counts = f", {found['errors']} errors, {found['errors of other kernels']} in others' kernels"
        yield f"- {tool}: {found['status']}{counts}"
        if found["status"] != "passed":
            yield from ("", "```", found["output"], "```", "")


def benchmark_lines(step: Mapping[str, Any]) -> Iterator[str]:
    """A table for each run."""
    if "runs" not in step:
        yield from plain_lines(step)
        return
    for name, run in step["runs"].items():
        yield from (f"### {name}: {run['status']}", "")
        report = run["report"]
        if report is None:
            yield from ("```", run["output"], "```", "")
            continue
        floor = report["floor"]
        yield f"{floor['card']['name']}: GEMM peak {floor['peak_gflops'] / 1e3:.3g} TFLOP/s ({floor['peak_shape']}), "
        yield f"copy {floor['memory_gbs']:.0f} GB/s. All rows are there: {'yes' if report['complete'] else 'no'}."
        yield from ("", "| TxB I>H | mode | torch | lstm_fused | ratio | of floor | plan | cuDNN | by | max diff |")
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for row in report["rows"]:
            times = (f"{1e3 * row[who]['median']:.4g} ms" for who in ("torch", "ours"))
            cells = (row["name"], row["mode"], *times, f"{row['ratio']:.2f}", f"{100 * row['fraction']:.1f}%")
            more = (row["plan"], row["cudnn"], row["timed"], f"{row['difference']['absolute']:.1e}")
            yield f"| {' | '.join((*cells, *more))} |"
        yield ""
        yield from (failure_line(failure) for failure in report["failures"])


def failure_line(failure: Mapping[str, Any]) -> str:
    """A row that could not be run."""
    case = failure["case"]
    shape = f"{case['cell']} {case['T']}x{case['B']} {case['I']}>{case['H']}"
    return f"- failed: {shape}, {failure['mode']}: {failure['error']}"
