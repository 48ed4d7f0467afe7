"""A pool of instance types that serve different numbers of units, bought at a provider's own offerings."""

import asyncio

import pytest

from cloud.ports import EngineCommand, LaunchRequest
from policies.actions import Attach, Launch
from policies.decide import decide
from policies.events import DaemonStarted, IntentOpened, NodeReady, PoolConfigured
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import (
    EngineReading,
    InstanceState,
    Market,
    Observed,
    Offering,
    PlacementRules,
    Pool,
    World,
)
from policies.observations import changes

pytestmark = pytest.mark.slow

LARGE = 4  # units of the dearer type


def pool_of(offerings: tuple[Offering, ...]) -> tuple[Pool, str, str]:
    """Ten units, five of them on spot, of whatever two types are sold; the smaller and the larger of them."""
    prices: dict[str, float] = {}
    for offering in offerings:
        kind = offering.placement.instance_type
        if offering.placement.market is Market.ON_DEMAND:
            assert offering.price is not None
            prices[kind] = min(offering.price, prices.get(kind, offering.price))
    small, large = sorted(prices, key=lambda kind: prices[kind])
    rules = PlacementRules(spread=0.0)
    pool = Pool(name="pool", replicas=10, spot_share=0.5, units={large: LARGE}, placement=rules)
    return pool, small, large


async def seen(cloud_world, count: int) -> World:
    """The provider's word once it lists so many running machines; every engine on them is ready."""
    async with asyncio.timeout(30.0):
        while True:
            listed = await cloud_world.listed("pool")
            if sum(i.state is InstanceState.RUNNING for i in listed) == count:
                break
            await cloud_world.clock.sleep(0.01)
    now = cloud_world.clock.now()
    return World(
        now=now,
        regions={"": Observed(value=tuple(listed), at=now)},
        engines={i.id: EngineReading(node=i.id, at=now, ready=True, ok=True) for i in listed},
        offerings={
            part: Observed(value=(await cloud_world.offerings.list(part)).offerings, at=now)
            for part in cloud_world.offerings.parts()
        },
        epoch=1,
    )


async def bought(cloud_world, pool: Pool, world: World, memory: Memory) -> tuple[Memory, int]:
    """What one turn launches is launched; how many that were."""
    launches = [a for a in decide(pool, world, memory).actions if isinstance(a, Launch)]
    for action in launches:
        opened = IntentOpened(
            at=world.now,
            token=action.token,
            kind=action.kind,
            node="",
            placement=action.placement,
            standby=None,
            replaces="",
            price=action.price,
            cause=action.cause,
            reason=action.reason,
        )
        memory = reduce(memory, opened)
        command = EngineCommand(argv=("sleep", "600"), stop_grace=5.0)
        await cloud_world.instances.launch(
            LaunchRequest(token=action.token, pool="pool", placement=action.placement, command=command)
        )
    return memory, len(launches)


async def test_two_sizes_make_what_is_wanted_and_no_more(cloud_world):
    world = await seen(cloud_world, 0)
    pool, small, large = pool_of([o for view in world.offerings.values() for o in view.value])
    memory = reduce(
        Memory(), DaemonStarted(at=world.now, epoch=1), PoolConfigured(at=world.now, replicas=pool.replicas)
    )
    memory, living = await bought(cloud_world, pool, world, memory)
    assert living == 3  # the first of a pool that never had a machine
    world = await seen(cloud_world, living)
    memory = reduce(memory, *changes(pool, world, memory))
    memory, more = await bought(cloud_world, pool, world, memory)
    world = await seen(cloud_world, living + more)
    memory = reduce(memory, *changes(pool, world, memory))
    memory = reduce(memory, *(NodeReady(at=world.now, node=n, address="a:1") for n in memory.nodes))
    fleet = Fleet.of(pool, world, memory)
    assert fleet.ready_by_market == {Market.SPOT: 5, Market.ON_DEMAND: 5}
    assert sorted(n.placement.instance_type for n in fleet.nodes) == sorted([small, large] * 2)
    assert {n.units for n in fleet.nodes if n.placement.instance_type == large} == {LARGE}
    plan = decide(pool, world, memory)
    assert all(isinstance(action, Attach) for action in plan.actions)
    assert sorted(spec.weight for spec in plan.targets) == [100, 100, 400, 400]
