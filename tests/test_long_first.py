"""The order in which `make test` hands modules to workers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from long_first import SECONDS, LongFirst

ROOT = Path(__file__).parents[1]
MODULES = {
    "tests/system/test_aws.py": 1,
    "tests/test_docs.py": 2,
    "tests/system/test_unlisted.py": 3,
    "tests/policies/test_many.py": 400,
    "tests/policies/test_some.py": 20,
    "tests/policies/test_few.py": 4,
}


class Worker:
    """Takes what it is sent and has it done at once when told to."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.shutting_down = False
        self.waiting: list[int] = []
        self.modules: list[str] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.waiting += indices
        self.modules += dict.fromkeys(TESTS[i].split("::")[0] for i in indices)

    def shutdown(self) -> None:
        self.shutting_down = True


TESTS = [f"{module}::test_{n}" for module, count in MODULES.items() for n in range(count)]


def test_two_workers_begin_with_the_longest_and_one_with_the_shortest_and_all_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SECONDS, "tests/test_docs.py", 200)
    monkeypatch.setitem(SECONDS, "tests/system/test_aws.py", 130)
    config: Any = SimpleNamespace(
        getvalue=lambda _name: ["popen"] * 3, option=SimpleNamespace(loadscopereorder=True)
    )
    scheduler = LongFirst(config)
    workers: list[Any] = [Worker(n) for n in range(3)]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, TESTS)
    scheduler.schedule()
    assert [worker.modules[0] for worker in workers] == [
        "tests/test_docs.py",
        "tests/system/test_aws.py",
        "tests/policies/test_few.py",
    ]
    while any(worker.waiting for worker in workers):
        for worker in workers:
            if worker.waiting:
                scheduler.mark_test_complete(worker, worker.waiting.pop(0))
    assert sorted(module for worker in workers for module in worker.modules) == sorted(MODULES)
    assert scheduler.tests_finished
    assert workers[2].modules == ["tests/policies/test_few.py", "tests/policies/test_some.py"]


def test_every_module_that_is_listed_is_there() -> None:
    assert [name for name in SECONDS if not (ROOT / name).is_file()] == []
