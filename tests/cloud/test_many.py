"""Several providers as those of one pool: each fails alone, and a machine is looked for where it can be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from cloud.errors import CloudError, Denied, Misconfigured, NotFound, Throttled, Uncertain
from cloud.many import AbsentInstances, AbsentOfferings, ManyInstances, ManyOfferings
from cloud.ports import EngineCommand, LaunchRequest, Sold
from policies.model import Instance, InstanceState, Market, Offering, Placement


def placement(region: str, provider: str = "x") -> Placement:
    return Placement(provider, region, f"{region}a", "gpu", Market.SPOT)


def machine(node: str, region: str) -> Instance:
    return Instance(
        id=node,
        pool="p",
        token=f"t-{node}",
        placement=placement(region),
        state=InstanceState.RUNNING,
        launched_at=0.0,
        price=None,
    )


def request(region: str, name: str = "t") -> LaunchRequest:
    command = EngineCommand(argv=("true",))
    return LaunchRequest(token=name, pool="p", placement=placement(region), command=command)


class Cloud:
    """One provider: what it lists by region, what it raises, and what it was asked."""

    def __init__(self, **listed: tuple[str, ...]) -> None:
        self.listed = {region: list(nodes) for region, nodes in listed.items()}
        self.regions = tuple(listed)
        self.fails: dict[str, BaseException] = {}
        self.hangs = False
        self.asked: list[tuple[str, str]] = []
        self.closed = 0

    async def launch(self, request: LaunchRequest) -> Instance:
        await self._asked("launch", request.token)
        return machine(f"new-{request.token}", request.placement.region)

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        await self._asked("list", region)
        return tuple(machine(node, region) for node in self.listed[region])

    async def terminate(self, node: str) -> None:
        await self._asked("terminate", node)

    async def stop(self, node: str) -> None:
        await self._own("stop", node)

    async def start(self, node: str) -> None:
        await self._own("start", node)

    async def console(self, node: str) -> str:
        await self._own("console", node)
        return f"written by {node}"

    async def close(self) -> None:
        self.closed += 1
        if "close" in self.fails:
            raise self.fails["close"]

    async def _own(self, call: str, node: str) -> None:
        await self._asked(call, node)
        if not any(node in nodes for nodes in self.listed.values()):
            raise NotFound(node)

    async def _asked(self, call: str, what: str) -> None:
        self.asked.append((call, what))
        if self.hangs:
            await asyncio.Event().wait()
        if call in self.fails:
            raise self.fails[call]


def two() -> tuple[Cloud, Cloud, ManyInstances]:
    east, west = Cloud(east=("e1",), north=()), Cloud(west=("w1",))
    return east, west, ManyInstances({"one": east, "two": west})


async def listed_everywhere(many: ManyInstances) -> None:
    for region in many.regions:
        await many.list("p", region)


async def test_a_region_is_listed_by_its_own_provider() -> None:
    east, west, many = two()
    assert many.regions == ("east", "north", "west")
    assert [i.id for i in await many.list("p", "west")] == ["w1"]
    assert (east.asked, west.asked) == ([], [("list", "west")])


async def test_a_launch_goes_to_the_provider_of_its_region_and_to_no_other() -> None:
    east, west, many = two()
    await many.launch(request("north"))
    await many.launch(request("west"))
    assert (east.asked, west.asked) == ([("launch", "t")], [("launch", "t")])
    with pytest.raises(Misconfigured, match="no cloud of this pool has a region south"):
        await many.launch(request("south"))


@pytest.mark.parametrize("node", ["w1", "new-t"], ids=["listed", "launched"])
@pytest.mark.parametrize("call", ["terminate", "stop", "start", "console"])
async def test_a_known_machine_is_asked_for_at_its_provider_alone(call: str, node: str) -> None:
    east, west, many = two()
    await listed_everywhere(many)
    west.listed["west"].append("new-t")
    await many.launch(request("west"))
    east.hangs = True  # whatever becomes of another cloud
    east.asked.clear()
    await getattr(many, call)(node)
    assert (east.asked, west.asked[-1]) == ([], (call, node))


async def test_a_machine_that_left_its_list_is_looked_for_everywhere() -> None:
    east, west, many = two()
    await many.launch(request("west"))
    west.listed["west"] = ["new-t"]
    await many.list("p", "west")
    assert many.provider_of("new-t") == "two"
    west.listed["west"] = []
    await many.list("p", "west")
    assert many.provider_of("new-t") == ""
    await many.terminate("new-t")
    assert ("terminate", "new-t") in east.asked
    assert ("terminate", "new-t") in west.asked


async def test_what_is_remembered_of_launches_is_bounded() -> None:
    _, _, many = two()
    for number in range(1100):
        await many.launch(request("east", name=str(number)))
    assert many.provider_of("new-0") == ""
    assert many.provider_of("new-1099") == "one"


async def test_the_end_of_an_unknown_machine_is_certain_once_every_provider_says_so() -> None:
    east, west, many = two()
    await many.terminate("who")
    east.fails["terminate"] = NotFound("who")  # that one of them does not know it is no failure
    await many.terminate("who")
    west.fails["terminate"] = Throttled("not now")
    with pytest.raises(Throttled):
        await many.terminate("who")
    west.fails.clear()
    await many.terminate("who")


async def test_a_dark_provider_keeps_the_others_from_no_end() -> None:
    east, west, many = two()
    east.hangs = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await many.terminate("who")
    assert west.asked == [("terminate", "who")]


@pytest.mark.parametrize("call", ["stop", "start", "console"])
async def test_an_unknown_machine_is_found_beside_providers_that_are_dark_or_refuse(call: str) -> None:
    east, west, many = two()
    east.fails[call] = Denied("expired")
    await getattr(many, call)("w1")
    east.fails.clear()
    east.hangs = True
    await getattr(many, call)("w1")
    assert west.asked == [(call, "w1")] * 2


@pytest.mark.parametrize("call", ["stop", "start", "console"])
async def test_not_found_is_what_every_provider_says(call: str) -> None:
    east, _, many = two()
    with pytest.raises(NotFound):
        await getattr(many, call)("who")
    east.fails[call] = Uncertain("no answer")
    with pytest.raises(Uncertain):
        await getattr(many, call)("who")


async def test_a_crash_of_one_adapter_is_no_answer_of_another() -> None:
    east, _, many = two()
    east.fails["terminate"] = KeyError("a bug")
    with pytest.raises(KeyError):
        await many.terminate("who")


async def test_closing_closes_every_provider_also_where_one_fails() -> None:
    east, west, many = two()
    east.fails["close"] = OSError("no")
    with pytest.raises(OSError, match="no"):
        await many.close()
    assert (east.closed, west.closed) == (1, 1)


class Shop:
    """What one provider sells."""

    def __init__(self, *regions: str, error: str = "") -> None:
        self._regions, self._error = regions, error
        self.closed = 0

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        return {f"{r} spot": (Offering(placement=placement(r), price=None),) for r in self._regions}

    async def list(self, part: str) -> Sold:
        if self._error:
            raise Denied(self._error)
        region = part.removesuffix(" spot")
        return Sold(offerings=(Offering(placement=placement(region), price=1.0),))

    async def close(self) -> None:
        self.closed += 1


async def test_parts_have_the_names_of_their_providers_and_fail_alone() -> None:
    shops = {"aws": Shop("east"), "gcp": Shop("east", "west", error="expired")}
    many = ManyOfferings(shops)
    assert set(many.parts()) == {"aws east spot", "gcp east spot", "gcp west spot"}
    assert many.parts()["aws east spot"] == shops["aws"].parts()["east spot"]
    assert [o.price for o in (await many.list("aws east spot")).offerings] == [1.0]
    with pytest.raises(Denied):
        await many.list("gcp west spot")
    await many.close()
    assert [shop.closed for shop in shops.values()] == [1, 1]


async def test_a_provider_without_adapters_says_why_at_every_call_and_holds_nobody_up() -> None:
    there = Cloud(west=("w1",))
    absent = AbsentInstances(("east",), "the SDK is missing")
    many = ManyInstances({"absent": absent, "there": there})
    calls: list[Any] = [many.list("p", "east"), many.launch(request("east"))]
    calls += [getattr(absent, name)("n") for name in ("terminate", "stop", "start", "console")]
    for call in calls:
        with pytest.raises(CloudError, match="the SDK is missing"):
            await call
    await many.list("p", "west")
    await many.terminate("w1")
    with pytest.raises(Misconfigured):  # it may be there
        await many.terminate("who")
    prices = ManyOfferings({"absent": AbsentOfferings("the SDK is missing"), "there": Shop("west")})
    assert prices.parts()["absent prices"] == ()
    with pytest.raises(Misconfigured):
        await prices.list("absent prices")
    assert (await prices.list("there west spot")).offerings
    await many.close()
    await prices.close()
