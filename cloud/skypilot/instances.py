"""The `Instances` port through SkyPilot, over the regions of one cloud.

What a token launched stands in a ledger before SkyPilot is called. SkyPilot finds machines by a name that is
made of the token, and lists nothing else, so the ledger is also what a list goes by: each of its machines
that has not ended is asked for by itself, with one call or a few, depending on the cloud.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloud.errors import (
    CloudError,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.logger import structlog
from cloud.ports import Clock, LaunchRequest
from cloud.skypilot.places import PROVIDER, SkyRegion
from cloud.skypilot.process import HelperShare
from cloud.threads import WorkerThreads
from cloud.tombstones import KEPT, Entry, Stage, Tombstones
from policies.model import Ending, Instance, InstanceState, Market

log = structlog.get_logger("skypilot")

REFUSALS: Final = (InsufficientCapacity, QuotaExceeded, Throttled, Misconfigured)
"""Errors of a launch that say that it made nothing. Denied is none: what was refused may be the look."""

_SETTLES: Final = 60.0
"""Seconds after a launch whose outcome nobody knows until a cloud that shows no machine has none. Only for
clouds whose call takes no token of ours: there a second launch would make a second machine."""
_YOUNG: Final = 120.0  # s after a launch during which a cloud may not show the machine yet
_LISTED: Final = 900.0  # s for which a machine that ended stays in the list
_REMEMBERED: Final = 200  # machines that ended of which it is known whether their end was asked for
_MOST_LOOKS: Final = 3  # at once, as many as the helper has threads for: none waits there while its time runs

_CARRIED: Final = 120.0
"""Seconds for which a look of a list that was given up counts for the next: else one that takes longer than a
call may would never end."""

_Look = tuple[float, dict[str, str]]
"""When a machine was looked at, and what the cloud said."""

_DISK: Final = WorkerThreads("skypilot-ledger", 1)
"""Where the ledgers of all pools are read and written."""


@dataclass(slots=True)
class _Seen:
    """What this process knows of a machine beside the ledger, all of which it can find out again."""

    state: InstanceState = InstanceState.PENDING
    address: str = ""
    asked_to_end: bool = False
    engine: bool = False  # its engine's start was ordered over SSH
    ordering: bool = False  # that is under way


class SkyInstances:
    """Machines on one cloud by SkyPilot. See `cloud.ports.Instances` for the contract."""

    def __init__(
        self,
        helper: HelperShare,
        regions: Sequence[SkyRegion],
        *,
        ledger: Tombstones,
        clock: Clock,
        settles: float = _SETTLES,
    ) -> None:
        self._helper, self._ledger, self._clock, self._settles = helper, ledger, clock, settles
        self._places = {place.region: place for place in regions}
        self.regions = tuple(self._places)
        self._seen: dict[str, _Seen] = {}
        self._tokens: dict[str, asyncio.Lock] = {}
        self._looks = asyncio.Semaphore(_MOST_LOOKS)
        self._given_up: dict[tuple[str, str], dict[str, _Look]] = {}
        self.orders: set[asyncio.Task[None]] = set()  # of engines, over SSH

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine. See the port for what is raised and when."""
        place = self._places.get(request.placement.region)
        if place is None or request.placement.provider != PROVIDER:
            raise Misconfigured(f"{request.placement}: this pool has no such region through SkyPilot")
        if request.placement.zone not in place.zones:
            raise Misconfigured(f"{request.placement}: {request.placement.zone} is no zone of this pool")
        lock = self._tokens.setdefault(request.token, asyncio.Lock())
        try:
            async with lock:
                return await self._launch(request, place)
        finally:
            if not lock.locked():
                self._tokens.pop(request.token, None)

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines of the pool in a region by the ledger; one that cannot be seen fails the list."""
        place, now = self._places[region], self._clock.now()
        entries = await _DISK.run(lambda: self._ledger.entries(pool))
        asked = [
            entry
            for entry in entries
            if entry.placement.region == region
            and entry.stage is not Stage.REFUSED
            and (entry.stage is not Stage.ENDED or (entry.machine and now - entry.at < _LISTED))
        ]
        self._forget(entries)
        done = {
            token: look
            for token, look in self._given_up.pop((pool, region), {}).items()
            if now - look[0] < _CARRIED
        }
        looks = [asyncio.ensure_future(self._listed(entry, place, done)) for entry in asked]
        try:
            return tuple(found for found in await asyncio.gather(*looks) if found is not None)
        except asyncio.CancelledError:
            self._given_up[pool, region] = done  # the next one goes on from there
            raise
        finally:
            for look in looks:
                look.cancel()

    async def terminate(self, node: str) -> None:
        """Ask for the end of a machine. What the ledger does not know is not ours."""
        entry = await self._entry(node)
        if entry is None or entry.stage is Stage.ENDED:
            return
        place = self._place(entry)
        self._of(entry).asked_to_end = True
        await self._helper.ask("terminate", what=what(entry, place))

    async def stop(self, node: str) -> None:
        """Stop a machine. Misconfigured where the cloud cannot stop one of its market."""
        entry = await self._living(node)
        place = self._place(entry)
        spot = entry.placement.market is Market.SPOT
        if not place.row.stops or (spot and not place.row.stops_spot):
            raise Misconfigured(f"SkyPilot cannot stop a {entry.placement.market} machine on {place.cloud}")
        await self._helper.ask("stop", what=what(entry, place))
        self._of(entry).engine = False

    async def start(self, node: str) -> None:
        """Start a stopped machine."""
        entry = await self._living(node)
        place = self._place(entry)
        await self._helper.ask("start", what=what(entry, place))
        self._of(entry).address = ""  # it may have a new one

    async def console(self, node: str) -> str:
        """Empty: SkyPilot reads no machine's console. Raises NotFound for what is not ours."""
        if await self._entry(node) is None:
            raise NotFound(f"{node} is no machine of this pool")
        return ""

    async def close(self) -> None:
        """Give up the share in the helper. Touches no machine. Idempotent."""
        for order in self.orders:
            order.cancel()
        await self._helper.close()

    # -- launches ----------------------------------------------------------------------------------

    async def _launch(self, request: LaunchRequest, place: SkyRegion) -> Instance:
        before = await _DISK.run(lambda: self._ledger.find(request.token))
        if before is not None and before.stage is Stage.ENDED:
            return self._instance(before, InstanceState.TERMINATED)
        name = cluster_of(request.token)
        entry = await _DISK.run(lambda: self._ledger.ask(request, name))
        asked_before = before is not None and before.stage is not Stage.REFUSED
        made = entry.stage is Stage.MADE
        settled = self._clock.now() - entry.at >= self._settles
        may = not made and (not asked_before or place.row.token or settled)
        if may and asked_before and not place.row.token:  # what comes of it is given its time as well
            entry = await _DISK.run(lambda: self._ledger.ask_again(request.token))
        try:
            found = await self._helper.ask(
                "launch", what=what(entry, place), may_launch=may, again=asked_before
            )
        except REFUSALS as refusal:
            if not may:  # what there may be from before was not seen
                raise Uncertain(str(refusal)) from refusal
            await self._note(entry, Stage.REFUSED)
            raise
        except CloudError as error:
            raise Uncertain(str(error)) from error
        if found["state"] == "absent" and not made and not may:
            raise Uncertain(
                f"{place.cloud} was asked for {request.token} and shows no machine; whether one comes is "
                f"known in {self._settles - (self._clock.now() - entry.at):.0f} s"
            )
        try:
            if found["machine"]:
                entry = await self._note(entry, Stage.MADE, found["machine"])
            return await self._taken(entry, place, found)
        except CloudError as error:  # there may be a machine
            raise Uncertain(str(error)) from error

    async def _listed(self, entry: Entry, place: SkyRegion, done: dict[str, _Look]) -> Instance | None:
        """One machine; None for a launch that made none, or none yet. `done` has the looks of this list."""
        if entry.stage is Stage.ENDED:
            return self._instance(entry, InstanceState.TERMINATED)
        known = {**what(entry, place), "address": self._of(entry).address}
        if entry.token not in done:
            async with self._looks:
                found = await self._helper.ask("look", what=known)
            done[entry.token] = (self._clock.now(), found)
        found = done[entry.token][1]
        if entry.stage is Stage.ASKED:
            if found["machine"]:
                entry = await self._note(entry, Stage.MADE, found["machine"])
            else:
                if entry.token not in self._tokens and self._clock.now() - entry.at > max(
                    self._settles, _YOUNG
                ):
                    await self._note(entry, Stage.REFUSED)
                return None
        return await self._taken(entry, place, found)

    async def _taken(self, entry: Entry, place: SkyRegion, found: Mapping[str, str]) -> Instance:
        """Take up what the cloud says of one machine."""
        seen = self._of(entry)
        state = found["state"]
        if state == "absent" and self._clock.now() - entry.at < _YOUNG and not seen.asked_to_end:
            state = "pending"
        if state in ("absent", "terminated"):
            ended = await self._note(entry, Stage.ENDED)
            await self._helper.ask("forget", cluster=entry.name)
            return self._instance(ended, InstanceState.TERMINATED)
        if self._clock.now() - entry.at > KEPT / 2:
            await _DISK.run(lambda: self._ledger.renew(entry.token))
        seen.state = InstanceState(state)
        seen.address = found["address"]
        if seen.state is InstanceState.RUNNING and place.row.starts_by == "ssh" and not seen.engine:
            self._order_engine(entry, place, seen)
        return self._instance(entry, seen.state)

    def _order_engine(self, entry: Entry, place: SkyRegion, seen: _Seen) -> None:
        """Have the engine started over SSH, beside the list. What fails is tried again at the next one."""
        if seen.ordering:
            return
        seen.ordering = True

        async def order() -> None:
            try:
                await self._helper.ask("engine", what=what(entry, place), script=place.script)
                seen.engine = True
            except CloudError as error:
                log.info("skypilot.engine_not_started", node=entry.machine, error=str(error))
            finally:
                seen.ordering = False

        task = asyncio.ensure_future(order())
        self.orders.add(task)
        task.add_done_callback(self.orders.discard)

    # -- the ledger --------------------------------------------------------------------------------

    async def _note(self, entry: Entry, stage: Stage, machine: str = "") -> Entry:
        return await _DISK.run(lambda: self._ledger.note(entry.token, stage, machine))

    async def _entry(self, node: str) -> Entry | None:
        return await _DISK.run(lambda: self._ledger.of_machine(node))

    async def _living(self, node: str) -> Entry:
        entry = await self._entry(node)
        if entry is None or entry.stage is Stage.ENDED:
            raise NotFound(f"{node} has ended, or is no machine of this pool")
        return entry

    def _place(self, entry: Entry) -> SkyRegion:
        """The region of a machine. Raises Misconfigured where the configuration has it no more."""
        place = self._places.get(entry.placement.region)
        if place is None:
            raise Misconfigured(
                f"{entry.machine} is in {entry.placement.region}, which this pool does not name any more; "
                "write the region until its machines have ended"
            )
        return place

    def _of(self, entry: Entry) -> _Seen:
        return self._seen.setdefault(entry.token, _Seen())

    def _forget(self, entries: Iterable[Entry]) -> None:
        living = {entry.token for entry in entries if entry.stage is not Stage.ENDED}
        for token in [
            token for token in self._seen if token not in living and not self._seen[token].asked_to_end
        ]:
            del self._seen[token]

    def _instance(self, entry: Entry, state: InstanceState) -> Instance:
        seen = self._seen.get(entry.token, _Seen())
        ended = state is InstanceState.TERMINATED
        ending, why = ending_of(entry, seen.asked_to_end) if ended else (Ending.UNKNOWN, "")
        return Instance(
            id=entry.machine,
            pool=entry.pool,
            token=entry.token,
            placement=entry.placement,
            state=state,
            address="" if ended else seen.address,
            launched_at=entry.first,
            price=None,
            standby=entry.standby,
            build=entry.build,
            ending=ending,
            ending_why=why,
            ended_at=entry.at if ended else None,
        )


def cluster_of(token: str) -> str:
    """What SkyPilot calls the machine of a token."""
    return f"so-{hashlib.blake2b(token.encode(), digest_size=6).hexdigest()}"


def what(entry: Entry, place: SkyRegion) -> dict[str, Any]:
    """One machine as the helper is asked for it; the same for as long as the configuration is."""
    return {
        "cluster": entry.name,
        "token": entry.token,
        "cloud": place.cloud,
        "region": place.region,
        "zone": entry.placement.zone,
        "type": entry.placement.instance_type,
        "spot": entry.placement.market is Market.SPOT,
        "image": place.image,
        "disk": place.disk,
        "network": place.network,
        "profile": place.profile,
        "internal": place.internal,
        "port": place.engine_port,
        "tags": {**place.tags, "orchestrator:pool": entry.pool, "orchestrator:token": entry.token},
        "user_data": base64.b64encode(place.user_data).decode(),
    }


def ending_of(entry: Entry, asked: bool) -> tuple[Ending, str]:
    """Why a machine ended. SkyPilot gives no reason, so an end of a spot machine that nobody here asked for
    is taken for a reclaim."""
    if asked:
        return Ending.REQUEST, "its end was asked for"
    if entry.placement.market is Market.SPOT:
        return (
            Ending.RECLAIM,
            "a spot machine ended and this pool did not ask for it; SkyPilot gives no reason",
        )
    return Ending.UNKNOWN, "it ended and this pool did not ask for it; SkyPilot gives no reason"
