"""The scales of `make soak`: they see what a daemon holds, not the simulated world, and a steady growth."""

from __future__ import annotations

import sys

from soak import ALLOWED, PER_LAUNCH, Weight, grown, reachable

from cloud.sim.balancer import Traffic
from orchestrator.loop.inbox import Inbox


class Holder:
    def __init__(self) -> None:
        self.inbox = Inbox()
        self.kept: dict[str, list[int]] = {}


def test_what_is_held_anywhere_below_is_weighed() -> None:
    holder = Holder()
    before, _ = reachable([holder])
    holder.kept["a"] = [10**9 + n for n in range(10_000)]
    after, by_type = reachable([holder])
    assert after - before > 10_000 * sys.getsizeof(10**9)
    assert by_type["builtins.int"] >= 10_000 * sys.getsizeof(10**9)


def test_an_object_counts_once_and_cycles_end() -> None:
    shared = ["x" * 1000]
    shared.append(shared)  # type: ignore[arg-type]
    assert reachable([shared])[0] == reachable([shared, shared, {"again": shared}["again"]])[0]


def test_the_simulated_world_does_not_count() -> None:
    holder = Holder()
    before, _ = reachable([holder])
    holder.world = Traffic(per_second=1.0)  # type: ignore[attr-defined]
    _, by_type = reachable([holder])
    assert not any(name.startswith("cloud.sim") for name in by_type)
    assert reachable([holder])[0] - before < 200


def weights(memory: list[int], disk: list[int]) -> list[Weight]:
    return [Weight(n, m, d, 100 * n) for n, (m, d) in enumerate(zip(memory, disk, strict=True))]


def test_steady_growth_is_caught_and_a_start_is_not() -> None:
    leak = [1_000_000 + 20_000 * day for day in range(30)]
    start = [100_000 * day for day in range(8)] + [1_000_000, 1_050_000] * 11
    memory, per_launch = grown(weights(leak, start))
    assert memory > ALLOWED
    assert per_launch < PER_LAUNCH
    memory, per_launch = grown(weights(start, [4_000_000 + PER_LAUNCH * 300 * n for n in range(30)]))
    assert memory <= ALLOWED
    assert per_launch > PER_LAUNCH


def test_a_wave_of_events_is_no_growth_and_a_kilobyte_for_each_launch_is_within_twelve_days() -> None:
    memory = [1_000_000] * 12
    wave = [4_000_000] * 8 + [3_900_000, 4_000_000, 4_050_000, 4_090_000]
    assert grown(weights(memory, wave))[1] <= PER_LAUNCH
    assert grown(weights(memory, [4_000_000 + 1_500 * 100 * n for n in range(12)]))[1] > PER_LAUNCH
