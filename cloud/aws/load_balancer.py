"""The `LoadBalancer` port on a target group of an Application Load Balancer (ELBv2).

A target group knows instances or addresses with a port, nothing else, so: the generation is a tag of the
group; "draining" is deregistered, and a taken-back drain is a new registration; weights are not known here.
A Network Load Balancer is refused: it sends new connections to a deregistered target for about two minutes,
longer than a notice gives, so a drain there cannot be believed.

Source of states and reasons: the ELBv2 API reference (TargetHealth, RegisterTargets, DeregisterTargets).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.aws.clients import Answer, AwsClients, Lane
from cloud.aws.errors import code_of
from cloud.aws.places import GENERATION_TAG
from cloud.errors import Denied, NotFound, Uncertain
from cloud.handover import WAIT, newcomers, one_takes_requests
from cloud.ports import BalancerView, Capabilities, Clock
from policies.model import Target, TargetPhase, TargetSpec, TargetState
from policies.value import replace

PROPAGATION = 25.0  # s; an ALB was seen to send new requests for 15 to 20 s after a deregistration

Key = tuple[str, int]  # a target as ELBv2 names it: instance id or address, and port
Owners = Callable[[Sequence[Key]], Awaitable[Mapping[Key, str]]]

_BATCH = 100  # targets a call
_POLL = 0.25  # s between two looks at a new target
_HTTP = ("HTTP", "HTTPS")
_DRAINING = "draining"
_STATES = {
    "initial": TargetState.INITIAL,
    "healthy": TargetState.HEALTHY,
    "unhealthy": TargetState.UNHEALTHY,
    "unhealthy.draining": TargetState.UNHEALTHY,
    "draining": TargetState.DRAINING,
    "unused": TargetState.UNUSED,
    "unavailable": TargetState.UNHEALTHY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """What does not change while a target group exists."""

    arn: str
    by_address: bool  # targets are addresses, not instance ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A target as the group tells it."""

    key: Key
    state: str
    reason: str

    @property
    def registered(self) -> bool:
        """Whether the balancer holds it as a target; a group names others only on their way out."""
        return self.state != _DRAINING and not self.reason.startswith("Target.NotRegistered")


class AlbTargetGroup:
    """One target group, written whole (level-triggered).

    `group`: its name or ARN; the name is what counts, so that a group made anew under the same name is
    filled again. `owners` says which targets belong to nodes of ours (`AwsInstances.owners`); whatever
    else is in the group is neither shown nor touched. `propagation`: seconds, see PROPAGATION.

    A change costs at most one registration, one deregistration and one tag per hundred targets; a set that
    equals what is there costs nothing. `observe` costs two calls. Where no target that stays is healthy, new
    ones are registered first and the others deregistered once one of them is, `wait` seconds later at most.
    """

    name = "alb"

    def __init__(
        self,
        clients: AwsClients,
        *,
        group: str,
        owners: Owners,
        clock: Clock,
        propagation: float = PROPAGATION,
        wait: float = WAIT,
    ) -> None:
        self.capabilities = Capabilities(drains=True, counts_in_flight=False, propagation=propagation)
        self._clients = clients
        self._share = clients.share()
        self._title = name_of(group)
        self._owners = owners
        self._clock, self._wait = clock, wait
        self._group: _Group | None = None
        self._order = asyncio.Lock()
        self._writes = 0  # a reading that a write overtook is not what is there now
        self._generation = 0
        self._held: dict[Key, _Held] | None = None  # None: not known, look before writing
        self._nodes: dict[Key, str] = {}  # whose a target is, as last asked for or looked up

    async def observe(self) -> BalancerView:
        """Read the targets and the generation.

        Raises Uncertain when AWS does not answer, NotFound when there is no such group, Denied when it
        cannot be used.
        """
        return await self._observe()  # without the lock: no notice waits for a slow description

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Register and deregister what differs, both at once, and note the generation.

        Raises Denied for a lower generation than one already accepted, Uncertain when no answer came.
        """
        async with self._order:
            if self._held is None:
                await self._observe()
            if generation < self._generation:
                raise Denied(
                    f"generation {generation} is older than {self._generation}, which was already applied"
                )
            try:
                await self._write(desired, generation)
            except NotFound:
                # The group was made anew under its name: start over with what is there now.
                self._group = self._held = None
                await self._observe()
                await self._write(desired, generation)

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Deregister these targets where they are registered as nodes of ours. See `LoadBalancer.detach`.

        The generation is compared with the group's and not noted: a newer one may be on its way there.
        """
        async with self._order:
            await self._observe()
            if generation < self._generation:
                raise Denied(f"generation {self._generation} was applied, newer than {generation}")
            group, held = await self._found(), self._held if self._held is not None else {}
            keys = {_key(spec, group): spec.id for spec in leaving}
            there = {k for k, node in keys.items() if self._nodes.get(k) == node}
            there = {k for k in there if k in held and held[k].registered}
            self._held = None  # until every part is acknowledged
            self._writes += 1
            await asyncio.gather(
                *(self._change("deregister_targets", group, part) for part in _batches(there))
            )

    async def deregistration_delay(self) -> float:
        """Seconds that a deregistered target's requests may go on. The default of 300 s is longer than a
        spot notice. Raises CloudError."""
        group = await self._found()
        answer = await self._call("describe_target_group_attributes", TargetGroupArn=group.arn)
        values = {entry["Key"]: entry["Value"] for entry in answer["Attributes"]}
        return float(values["deregistration_delay.timeout_seconds"])

    async def close(self) -> None:
        """Give up this adapter's share of the clients. The targets stay. Idempotent."""
        await self._share.close()

    async def _write(self, desired: Sequence[TargetSpec], generation: int) -> None:
        group = await self._found()
        held = self._held if self._held is not None else {}
        wanted = {_key(spec, group): spec for spec in desired if spec.phase is TargetPhase.ACTIVE}
        nodes = {_key(spec, group): spec.id for spec in desired}
        there = {key for key, target in held.items() if target.registered}
        ours = there & (self._nodes.keys() | nodes.keys())
        joining, leaving = wanted.keys() - there, ours - wanted.keys()
        self._nodes.update(nodes)
        if not joining and not leaving:
            return
        as_shown = [replace(spec, address="{}:{}".format(*_key(spec, group))) for spec in desired]
        waiting = newcomers(self._targets(held), as_shown) if leaving else frozenset()
        self._held = None  # until every part is acknowledged
        self._writes += 1
        adds = [self._change("register_targets", group, part) for part in _batches(joining)]
        adds.append(self._note(group, generation))
        if waiting:
            await asyncio.gather(*adds)
            await one_takes_requests(waiting, self._shown, as_shown, self._clock, self._wait, _POLL)
            adds, self._held = [], None
            self._writes += 1
        removals = (self._change("deregister_targets", group, part) for part in _batches(leaving))
        await asyncio.gather(*removals, *adds)
        self._generation = generation
        for key in joining:
            held[key] = _Held(key=key, state="initial", reason="Elb.RegistrationInProgress")
        for key in leaving:
            held[key] = _Held(key=key, state=_DRAINING, reason="Target.DeregistrationInProgress")
        self._held = held
        self._writes += 1

    async def _shown(self) -> tuple[Target, ...]:
        return (await self._observe()).targets

    async def _observe(self) -> BalancerView:
        writes = self._writes
        try:
            group = await self._found()
            tags, health = await asyncio.gather(
                self._call("describe_tags", ResourceArns=[group.arn]),
                self._call("describe_target_health", TargetGroupArn=group.arn),
            )
        except NotFound:
            if self._group is None:
                raise
            self._group = None
            return await self._observe()
        held = {target.key: target for target in map(_held, health["TargetHealthDescriptions"])}
        await self._look_up(held.keys())
        self._generation = max(_generation(tags), self._generation)
        if self._writes == writes:
            self._held = held
            self._nodes = {key: node for key, node in self._nodes.items() if key in held}
        return BalancerView(incarnation=group.arn, generation=self._generation, targets=self._targets(held))

    def _targets(self, held: Mapping[Key, _Held]) -> tuple[Target, ...]:
        """One target a node: while a node moves to another address, the one that serves."""
        found: dict[str, Target] = {}
        for key, target in sorted(held.items(), key=lambda item: not item[1].registered):
            node = self._nodes.get(key)
            leaving = not target.registered
            if node is None or (leaving and (target.state != _DRAINING or node in found)):
                continue
            found[node] = Target(
                id=node,
                address=f"{key[0]}:{key[1]}",
                state=_STATES.get(target.state, TargetState.UNHEALTHY),
                in_flight=None,
                reason=target.reason,
            )
        return tuple(found.values())

    async def _look_up(self, keys: Iterable[Key]) -> None:
        """Find out whose the targets are that this process did not register itself."""
        strange = sorted(key for key in keys if key not in self._nodes)
        if strange:
            owners = await self._owners(strange)
            self._nodes.update({key: node for key, node in owners.items() if key not in self._nodes})

    async def _found(self) -> _Group:
        """The group behind the name. Raises NotFound, Denied."""
        if self._group is None:
            answer = await self._call("describe_target_groups", Names=[self._title])
            group = answer["TargetGroups"][0]
            protocol, kind = group.get("Protocol", ""), group.get("TargetType", "instance")
            if protocol not in _HTTP:
                raise Denied(
                    f"target group {self._title} speaks {protocol or 'nothing'}, so a Network Load Balancer "
                    "uses it, which sends new connections to a drained node for about two minutes; use an "
                    "Application Load Balancer with a target group of HTTP or HTTPS, or the gateway"
                )
            if kind not in ("instance", "ip"):
                raise Denied(f"target group {self._title} holds {kind} targets; make one of instance or ip")
            self._group = _Group(arn=group["TargetGroupArn"], by_address=kind == "ip")
        return self._group

    async def _change(self, operation: str, group: _Group, keys: Sequence[Key]) -> None:
        """One batch. A target that cannot be registered, since its machine is not running, fails the whole
        call, so the others are then registered one by one before the failure is raised."""
        targets = [{"Id": name, "Port": port} for name, port in keys]
        try:
            await self._call(operation, TargetGroupArn=group.arn, Targets=targets)
        except Denied as error:
            if code_of(error) not in ("InvalidTarget", "InvalidTargetException") or len(keys) == 1:
                raise
            singly = (self._change(operation, group, [key]) for key in keys)
            failed = [e for e in await asyncio.gather(*singly, return_exceptions=True) if e is not None]
            if failed:
                raise failed[0] from None

    async def _note(self, group: _Group, generation: int) -> None:
        tags = [{"Key": GENERATION_TAG, "Value": str(generation)}]
        await self._call("add_tags", ResourceArns=[group.arn], Tags=tags)

    async def _call(self, operation: str, **parameters: Any) -> Answer:
        return await self._clients.call(Lane.URGENT, "elbv2", operation, lost=Uncertain, **parameters)


def name_of(group: str) -> str:
    """The name in "arn:aws:elasticloadbalancing:REGION:ACCOUNT:targetgroup/NAME/ID", or a name as it is."""
    return group.split("/")[1] if group.startswith("arn:") and group.count("/") == 2 else group


def _key(spec: TargetSpec, group: _Group) -> Key:
    host, _, port = spec.address.rpartition(":")
    if not host or not port.isdigit():
        raise Denied(f"target {spec.id}: address {spec.address!r}: expected host:port")
    return (host.strip("[]") if group.by_address else spec.id, int(port))


def _held(entry: Mapping[str, Mapping[str, str]]) -> _Held:
    target, health = entry["Target"], entry["TargetHealth"]
    reason = ": ".join(text for text in (health.get("Reason"), health.get("Description")) if text)
    return _Held(key=(target["Id"], int(target["Port"])), state=health["State"], reason=reason)


def _generation(answer: Answer) -> int:
    for description in answer["TagDescriptions"]:
        for tag in description["Tags"]:
            if tag["Key"] == GENERATION_TAG and tag["Value"].isdigit():
                return int(tag["Value"])
    return 0


def _batches(keys: Iterable[Key]) -> list[Sequence[Key]]:
    ordered = sorted(keys)
    return [ordered[at : at + _BATCH] for at in range(0, len(ordered), _BATCH)]
