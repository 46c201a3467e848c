"""Threads and processes: who calls, from where, with how many. In children, so that a hang is seen and ended."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import children
import pytest
import raw
import torch
from cases import PLANS, Case
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lstm_fused import runtime

# Large enough that every plan, and the sums over time, put more than one thread to work.
CASES = [
    Case("lstm", T=20, B=16, I=64, H=96, bidirectional=True),
    Case("gru", T=20, B=16, I=64, H=96),
    Case("lstm", T=40, B=1, I=64, H=256),
    Case("gru", T=20, B=16, I=64, H=96, packed=True, bidirectional=True),
]
FORCED = ("", *PLANS)  # "" is the cost model's choice


@dataclass
class Job:
    """A layer's arguments and cotangents, ready: the call is the package's work alone.

    torch's own operators hang in a forked child, on tensors so large that they take several threads, until something
    tells torch to use one thread there: that is what the layer's first call does.
    """

    arguments: raw.Arguments
    cotangents: list[Tensor]

    def run(self, change_threads: Callable[[], None] = lambda: None) -> list[Tensor]:
        """Outputs and gradients."""
        a = self.arguments
        outputs = a.call()
        change_threads()
        grads = torch.autograd.grad(outputs, a.tensors, self.cotangents)
        return [out.detach() for out in outputs] + list(grads)


def job(case: Case, seed: int = 0) -> Job:
    a = raw.arguments(case, seed)
    return Job(a, [torch.ones_like(out) for out in a.call()])


def same(ours: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(ours, wanted, strict=True))


# ---- what the children do: functions named child_*, called by name from the end of the file ----------------------


def child_python_threads() -> None:
    """Eight Python threads call at once, on inputs that they share and in an order of their own."""
    jobs = [job(case, seed) for seed in range(2) for case in CASES]
    for plan in FORCED:
        with runtime.use_plan(plan):
            torch.set_num_threads(2)
            wanted = [j.run() for j in jobs]
            start = threading.Barrier(8)

            def work(first: int, wanted: list[list[Tensor]] = wanted, start: threading.Barrier = start) -> bool:
                torch.set_num_threads(1 + first % 3)  # a setting of each thread's own
                start.wait()
                turns = [(first + k) % len(jobs) for k in range(len(jobs))]
                return all(same(jobs[k].run(), wanted[k]) for k in turns)

            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(work, range(8))), f"plan '{plan}': a thread saw other results"


def forked(check: Callable[[], bool]) -> int:
    """Exit status of a forked child that calls ``check()``: 0 if it returned True."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(waited)


def child_fork() -> None:
    """A forked child runs forward and backward after its parent used several threads; its own child, and it after."""
    jobs = [job(case) for case in CASES]
    for threads in (2, 4):
        for plan in FORCED:
            with runtime.use_plan(plan):
                torch.set_num_threads(threads)
                wanted = [j.run() for j in jobs]
                torch.randn(600, 600) @ torch.randn(600, 600)  # the vendor's pool is running, too
                print(f"plan '{plan}', {threads} threads", flush=True)

                def check(wanted: list[list[Tensor]] = wanted, threads: int = threads) -> bool:
                    first = all(same(j.run(), w) for j, w in zip(jobs, wanted, strict=True))
                    torch.set_num_threads(threads)  # asking for threads that cannot be had changes nothing
                    return first and all(same(j.run(), w) for j, w in zip(jobs, wanted, strict=True))

                assert forked(check) == 0, "the forked child failed"
                assert forked(lambda check=check: check() and forked(check) == 0) == 0, "the child's child failed"
                assert check(), "the parent's own results changed after the fork"


class Computed(Dataset[list[Tensor]]):
    """A data set whose items are computed by a layer, backward included."""

    def __init__(self) -> None:
        self.jobs = [job(case, seed) for seed in range(2) for case in CASES]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.jobs[index].run()


def child_dataloader() -> None:
    """Forked DataLoader workers compute with the layer, after the parent did so on several threads."""
    torch.set_num_threads(2)
    dataset = Computed()
    wanted = [dataset[k] for k in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for _ in range(2):
        loaded = list(loader)
        assert len(loaded) == len(wanted)
        assert all(same(x, y) for x, y in zip(loaded, wanted, strict=True))


def child_thread_count_changes() -> None:
    """The thread count changes between calls, and between a forward and its backward."""
    jobs = [job(case) for case in CASES]
    for plan in FORCED:
        with runtime.use_plan(plan):
            torch.set_num_threads(1)
            wanted = [j.run() for j in jobs]
            for before, after in ((1, 4), (4, 1), (2, 3), (3, 2), (4, 4)):
                for j, w in zip(jobs, wanted, strict=True):
                    torch.set_num_threads(before)
                    ours = j.run(lambda after=after: torch.set_num_threads(after))
                    assert same(ours, w), (plan, before, after)


def child_oversubscribed() -> None:
    """Four threads, and then sixteen, on the first two cores: barriers wait for threads that are not running."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    jobs = [job(case) for case in CASES]
    for threads, repeats in ((4, 5), (16, 1)):
        for plan in FORCED:
            with runtime.use_plan(plan):
                torch.set_num_threads(1)
                wanted = [j.run() for j in jobs]
                torch.set_num_threads(threads)
                for _ in range(repeats):
                    assert all(same(j.run(), w) for j, w in zip(jobs, wanted, strict=True)), (plan, threads)


def child_fewer_threads_than_asked() -> None:
    """OpenMP may give fewer threads than a plan wants (here, by its limit): nothing waits for those that never come."""
    assert os.environ["OMP_THREAD_LIMIT"] == "2"
    jobs = [job(case) for case in CASES]
    with runtime.use_plan("serial"):
        wanted = [j.run() for j in jobs]
    torch.set_num_threads(4)
    for plan in FORCED:
        with runtime.use_plan(plan):
            assert all(same(j.run(), w) for j, w in zip(jobs, wanted, strict=True)), plan


CHILDREN = [name.removeprefix("child_") for name in list(globals()) if name.startswith("child_")]


@pytest.mark.parametrize("name", CHILDREN)
def test_in_a_child(name: str) -> None:
    environment = {"OMP_THREAD_LIMIT": "2"} if name == "fewer_threads_than_asked" else {}
    assert "done" in children.check(__file__, name, timeout=180, environment=environment)


if __name__ == "__main__":
    globals()[f"child_{sys.argv[1]}"]()
    print("done")
