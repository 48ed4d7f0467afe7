"""The scheduler of the simulated engine, on a clock that jumps instead of waiting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from cloud.engines.simulated_server.core import Core, CoreSettings, EngineDead, Generation
from cloud.engines.simulated_server.metrics import Metrics


@dataclass
class Jumping:
    """Virtual time: a sleep moves the clock at once. `late` is added to the next sleep."""

    at: float = 0.0
    late: float = 0.0

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += max(0.0, seconds) + self.late
        self.late = 0.0
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Jumping:
    return Jumping()


@pytest.fixture
async def core(clock: Jumping) -> AsyncIterator[Core]:
    settings = CoreSettings(
        tokens_per_second=10.0, time_to_first_token=0.5, max_num_seqs=2, max_model_len=1000
    )
    core = Core(clock, settings, Metrics("tiny"))
    running = asyncio.create_task(core.run())
    yield core
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def submit(core: Core, max_tokens: int, prompt: tuple[int, ...] = (1, 2, 3)) -> Generation:
    return core.submit(prompt, max_tokens, seed=None, ignore_eos=True)


async def drain(generation: Generation) -> tuple[list[int], str]:
    tokens: list[int] = []
    finish: str | None = None
    while finish is None:
        new, finish = await generation.read()
        tokens += new
    return tokens, finish


def sample(core: Core, line: str) -> float:
    for found in core.metrics.render().decode().splitlines():
        if found.startswith(line):
            return float(found.rsplit(" ", 1)[1])
    raise AssertionError(f"no sample {line!r}")


async def test_one_request_takes_its_time(core: Core, clock: Jumping) -> None:
    tokens, finish = await drain(submit(core, 11))
    assert len(tokens) == 11
    assert finish == "length"
    assert clock.at == pytest.approx(1.5), "0.5 s to the first token, 0.1 s for each of the ten after it"


async def test_requests_beyond_the_slots_wait_for_their_turn(core: Core) -> None:
    order: list[str] = []

    async def follow(name: str, generation: Generation) -> None:
        await drain(generation)
        order.append(name)

    lengths = {"a": 30, "b": 10, "c": 5, "d": 3}
    followers = [asyncio.create_task(follow(name, submit(core, n))) for name, n in lengths.items()]
    assert (sample(core, "vllm:num_requests_running"), sample(core, "vllm:num_requests_waiting{")) == (2, 2)
    await asyncio.gather(*followers)
    assert order == ["b", "c", "d", "a"]
    assert core.in_flight == 0
    assert sample(core, "vllm:num_requests_running") == 0
    assert sample(core, "vllm:generation_tokens_total") == 48
    assert sample(core, "vllm:prompt_tokens_total") == 12
    assert sample(core, "vllm:time_to_first_token_seconds_count") == 4
    assert sample(core, "vllm:inter_token_latency_seconds_count") == 44
    assert sample(core, 'vllm:request_success_total{engine="0",finished_reason="length"') == 4


async def test_a_late_machine_gets_bigger_chunks_and_the_same_rate(core: Core, clock: Jumping) -> None:
    generation = submit(core, 100)
    tokens, _ = await generation.read()
    assert len(tokens) == 1
    clock.late = 0.55
    chunk: list[int] = []
    while len(chunk) <= 1:
        new, _ = await generation.read()
        chunk = list(new)
    assert len(chunk) == 6
    await drain(generation)
    assert clock.at == pytest.approx(0.5 + 9.9, abs=0.11)


async def test_a_machine_that_slept_loses_the_time(core: Core, clock: Jumping) -> None:
    generation = submit(core, 100)
    await generation.read()
    clock.late = 3600.0
    sizes = []
    for _ in range(5):
        new, _ = await generation.read()
        sizes.append(len(new))
    assert max(sizes) == 1


async def test_a_client_that_leaves_frees_its_slot(core: Core) -> None:
    first, second, third = submit(core, 1000), submit(core, 5), submit(core, 5)
    assert not third.started
    core.drop(first)
    core.drop(first)
    tokens, finish = await drain(third)
    assert len(tokens) == 5
    assert finish == "length"
    core.drop(second)
    assert core.in_flight == 0
    assert sample(core, 'vllm:request_success_total{engine="0",finished_reason="abort"') == 0


async def test_a_frozen_engine_keeps_its_old_gauges(core: Core, clock: Jumping) -> None:
    first = submit(core, 1000)
    await first.read()
    core.freeze()
    before = sample(core, "vllm:generation_tokens_total")
    second = submit(core, 3)
    core.drop(first)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sample(core, "vllm:generation_tokens_total") == before
    assert sample(core, "vllm:num_requests_running") == 1
    assert core.in_flight == 1
    core.thaw()
    tokens, _ = await drain(second)
    assert len(tokens) == 3
    assert sample(core, "vllm:num_requests_running") == 0


async def test_a_dead_engine_fails_everything(core: Core) -> None:
    held = [submit(core, 10) for _ in range(3)]
    core.kill()
    for generation in held:
        with pytest.raises(EngineDead):
            await generation.read()
    with pytest.raises(EngineDead):
        submit(core, 1)
    assert core.in_flight == 0


async def test_a_slow_engine_takes_longer(core: Core, clock: Jumping) -> None:
    core.slow(4.0)
    await drain(submit(core, 11))
    assert clock.at == pytest.approx(6.0, abs=0.4)


async def test_a_seed_of_the_request_changes_the_text(core: Core) -> None:
    texts = []
    for seed in (None, None, 1, 1, 2):
        generation = core.submit((7, 8), 8, seed=seed, ignore_eos=True)
        texts.append(tuple((await drain(generation))[0]))
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert len(set(texts)) == 3


async def test_a_text_that_ends_by_itself_stops(clock: Jumping) -> None:
    settings = CoreSettings(
        tokens_per_second=10.0, time_to_first_token=0.0, max_num_seqs=1, max_model_len=1000, mean_length=3
    )
    core = Core(clock, settings, Metrics("tiny"))
    running = asyncio.create_task(core.run())
    short = core.submit((1,), 500, seed=None, ignore_eos=False)
    tokens, finish = await drain(short)
    assert finish == "stop"
    assert len(tokens) < 100
    tokens, finish = await drain(core.submit((1,), 500, seed=None, ignore_eos=True))
    assert finish == "length"
    assert len(tokens) == 500
    running.cancel()
