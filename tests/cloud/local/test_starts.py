"""What a local cloud knows of a start: when the engine's process began, and what its log told of it."""

import pytest

from cloud.errors import NotFound
from cloud.node_log import StartLog
from policies.model import Market

LOG = "Loading weights took 8.50 seconds\nApplication startup complete.\n"


def writes(text: str) -> dict:
    return {"argv": ("sh", "-c", f"printf '{text}'; exec sleep 600")}


async def test_before_the_machine_is_up_nothing_is_known(bench):
    launched = await bench.launch()
    assert await bench.instances.started(launched.id) is None
    with pytest.raises(NotFound):
        await bench.instances.started("i-none")


async def test_the_engines_beginning_and_its_log(bench):
    node = await bench.up(**writes(LOG.replace("\n", "\\n")))
    log = bench.server.machines.log_path(node.id)
    await bench.until(lambda: log.exists() and "startup" in log.read_text())
    said = await bench.instances.started(node.id)
    ((stage, at),) = said.stages
    assert stage == "start"
    assert node.launched_at < at <= bench.clock.now()
    assert (said.serves, said.took) == (True, {"load": 8.5})


async def test_a_second_start_has_its_own_part_of_the_log(bench):
    node = await bench.up(market=Market.ON_DEMAND, **writes("Loading weights took 8.50 seconds\\n"))
    log = bench.server.machines.log_path(node.id)
    await bench.until(lambda: log.exists() and "8.50" in log.read_text())
    first = await bench.instances.started(node.id)
    await bench.instances.stop(node.id)
    await bench.clock.advance(30.0)
    await bench.until(lambda: bench.server.machines.all_held() == ())
    log.write_text(log.read_text() + "Graph capturing finished in 5 secs, took 1 GiB\n")
    await bench.instances.start(node.id)
    await bench.clock.advance(600.0)
    await bench.until(lambda: log.read_text().count("8.50") == 2)
    second = await bench.instances.started(node.id)
    assert second.stages[0][1] > first.stages[0][1]
    assert second.took == {"load": 8.5}, "the line between is of no start"


async def test_a_log_that_was_moved_aside_tells_nothing_of_the_start(bench):
    node = await bench.up(**writes(LOG.replace("\n", "\\n")))
    log = bench.server.machines.log_path(node.id)
    await bench.until(lambda: log.exists() and "startup" in log.read_text())
    log.unlink()
    said = await bench.instances.started(node.id)
    assert (said.serves, said.took) == (False, {})
    assert StartLog().told()["took"] == {}
