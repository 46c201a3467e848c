"""Child processes, for what could take the whole suite with it: a crash, or a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def run(file: str, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs ``python file arguments`` in a process group of its own; returns its exit status and all its output.

    A negative status is the signal that ended it. Past ``timeout`` the whole group (forked grandchildren too) is
    killed and ``TimeoutError`` raised.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}  # as users have it
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", file, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},  # the same modules
    )
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        raise TimeoutError(
            f"{Path(file).name} {' '.join(arguments)} hung for {timeout} s; it said:\n{output}"
        ) from None
    return child.returncode, output


def check(file: str, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None) -> str:
    """As ``run``; asserts that the child ended well, and returns its output."""
    status, output = run(file, *arguments, timeout=timeout, environment=environment)
    ending = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    assert status == 0, f"{Path(file).name} {' '.join(arguments)} ended with {ending}; it said:\n{output}"
    return output
