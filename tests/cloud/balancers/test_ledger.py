"""The ledger of balancers without ids: it survives kills, damage and a full disk."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from cloud.balancers.ledger import Ledger
from cloud.balancers.targets_file import copy_of
from cloud.clock import SystemClock
from cloud.errors import Denied, Uncertain
from policies.model import TargetSpec

A, B = TargetSpec(id="a", address="127.0.0.1:1"), TargetSpec(id="b", address="127.0.0.1:2")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "balancers" / "p-smg.json"


@pytest.fixture
def ledger(file):
    made = Ledger(file, pool="p", clock=SystemClock())
    yield made
    made.close()


async def test_what_is_written_is_read_again(ledger, file):
    assert (await ledger.read()).generation == 0
    await ledger.write([B, A], 3)
    held = await Ledger(file, pool="p", clock=SystemClock()).read()
    assert (held.generation, held.targets) == (3, (A, B))
    with pytest.raises(Denied, match="another daemon leads"):
        await ledger.write([A], 2)


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 4096])
async def test_one_damaged_file_loses_nothing(ledger, file, damage):
    await ledger.write([A], 3)
    for victim in (file, copy_of(file)):
        whole = victim.read_bytes()
        victim.write_bytes(damage or whole[: len(whole) // 2])
        assert (await ledger.read()).targets == (A,)
        victim.write_bytes(whole)


async def test_two_damaged_files_are_an_empty_ledger_that_can_be_written(ledger, file):
    await ledger.write([A], 3)
    for victim in (file, copy_of(file)):
        victim.write_bytes(b"{}")
    assert ((await ledger.read()).generation, (await ledger.read()).targets) == (0, ())
    await ledger.write([B], 4)
    assert (await ledger.read()).targets == (B,)


async def test_the_ledger_of_another_pool_is_not_believed(ledger, file):
    await ledger.write([A], 3)
    other = Ledger(file, pool="q", clock=SystemClock())
    assert (await other.read()).targets == ()
    with pytest.raises(Denied):
        await other.write([B], 9)
    other.close()


async def test_a_place_that_cannot_be_written_is_uncertain(tmp_path):
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "p.json", pool="p", clock=SystemClock())
    with pytest.raises(Uncertain, match="cannot be written"):
        await ledger.write([A], 1)
    ledger.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from cloud.balancers.ledger import Ledger
from cloud.clock import SystemClock
from policies.model import TargetSpec

async def main():
    ledger = Ledger(Path(sys.argv[1]), pool="p", clock=SystemClock())
    for n in range(1, 1_000_000):
        await ledger.write([TargetSpec(id=f"n{n}", address="127.0.0.1:1")], n)
        print(n, flush=True)

asyncio.run(main())
"""


def test_a_killed_writer_leaves_the_set_that_it_reported_or_a_newer_one(ledger, file):
    for kill in range(3):
        started = asyncio.run(ledger.read()).generation
        code = WRITER.replace("range(1,", f"range({started + 1},")
        child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(3 + kill)]
        time.sleep(0.003 * kill)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read()
        said += [int(line) for line in rest.splitlines() if line.isdigit()]
        child.wait()
        held = asyncio.run(ledger.read())
        assert said[-1] <= held.generation <= said[-1] + 1
        assert held.targets == (TargetSpec(id=f"n{held.generation}", address="127.0.0.1:1"),)
