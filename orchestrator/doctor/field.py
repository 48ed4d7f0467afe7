"""What a field test needs from a configuration: the pool on one kind of cloud, its ports, who may listen."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cloud.errors import CloudError
from cloud.kinds import KINDS, CloudName
from cloud.ports import Clock, LaunchRequest, Notices
from orchestrator.api.client import ClientError, ControlClient
from orchestrator.api.listeners import Listeners, StartError
from orchestrator.config.load import Config
from orchestrator.doctor import field_report
from orchestrator.doctor.field_kinds import FIELD, FieldKind
from orchestrator.doctor.field_steps import Cloud, FieldTest, longest
from orchestrator.doctor.findings import fail, ok, warn
from orchestrator.doctor.short_lived import Passed, Said, ShortLived, surely
from orchestrator.doctor.try_node import Offer
from orchestrator.doctor.unfinished import Notebook, Unfinished
from orchestrator.wiring.clouds import WIRING
from orchestrator.wiring.ports import Ports, connect
from policies.model import InstanceState

_ANSWER: Final = 5.0  # s for an answer of the daemon
_HELD: Final = "the daemon has it; stop the daemon for the time of the test"


class Refused(Exception):
    """There can be no test; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A pool on one kind of cloud, which can be tested. `daemon`: one of the same configuration runs."""

    kind: CloudName
    row: FieldKind
    config: Config
    daemon: bool

    @property
    def longest(self) -> float:
        """Seconds for which a machine may live at most."""
        preemption = KINDS[self.kind].preemption
        taken = 0.0 if preemption is None else preemption.within
        return longest(boot=self.config.wanted.health.boot_timeout, stops=self.stops, taken=taken)

    @property
    def stops(self) -> bool:
        """Whether its machines can be stopped and started."""
        return self.config.pool.cloud.traits.stops


def subject(config: Config, kind: CloudName) -> Subject:
    """The only pool of a configuration on that kind of cloud. Raises Refused."""
    row = FIELD[kind]
    if row is None:
        raise Refused(
            f"the {KINDS[kind].title} is no service that could be tested in the field: its machines are "
            f"{KINDS[kind].machines}; `orchestrator demo` shows them"
        )
    if kind not in config.pool.cloud.kinds:
        raise Refused(
            f"the pool {config.pool_name} runs on {' and '.join(config.pool.cloud.kinds)}; name a "
            f"configuration with a pool on {kind}"
        )
    config = config.on_cloud(kind)
    daemon = _answers(config)
    if daemon and row.one_process:
        raise Refused(
            f"a daemon of this configuration runs, and {KINDS[kind].title} serves one process; stop it, or "
            "name a configuration with a state directory of its own"
        )
    return Subject(kind=kind, row=row, config=config, daemon=daemon)


def _answers(config: Config) -> bool:
    """Whether a daemon answers on the socket of the configuration."""
    try:
        ControlClient(config.daemon.socket, timeout=_ANSWER).status()
    except ClientError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """The steps of a test, and the files of its report."""

    steps: Sequence[Passed]
    files: Sequence[Path]


async def test(one: Subject, clock: Clock, offered: Offer, notebook: Notebook, said: Said) -> Tested:
    """Run a test, and write its report. Raises OSError, ValueError for what the configuration lacks."""
    config, began = one.config, clock.now()
    async with _ports(one, clock) as (ports, cloud):

        def noted(request: LaunchRequest, node: str) -> None:
            notebook.write(
                Unfinished(
                    kind=one.kind,
                    pool=request.pool,
                    token=request.token,
                    placement=request.placement,
                    node=node,
                )
            )

        node = ShortLived(
            instances=ports.instances,
            clock=clock,
            pool=config.pool_name,
            command=ports.command,
            offerings=offered.offerings,
            token=f"field-test/{secrets.token_hex(8)}",
            said=said,
            by_hand=WIRING[one.kind].by_hand,
            noted=noted,
        )
        ports.owned.judge = lambda each: (
            True if node.machine is not None and each == node.machine.id else None
        )
        tried = FieldTest(node, cloud, clock, boot=config.wanted.health.boot_timeout)
        await tried.run()
    if tried.certain:
        notebook.forget()
    view = field_report.report(tried, one.kind, one.row, config, began)
    try:
        files = field_report.write(view, config.daemon.state_dir / "field-tests")
    except OSError as error:
        node.passed(warn(f"it cannot be written: {error}", "make room, or run it as another user", "report"))
        return Tested(steps=node.steps, files=())
    send = "send it in, and it lifts what docs/reference/proof.md says" if view["proof"] == "field" else ""
    supports = f"{files[0]} and {files[1].name}; it supports the proof level {view['proof']}"
    node.passed(ok(f"{supports}{'; ' if send else ''}{send}", "report"))
    return Tested(steps=node.steps, files=files)


def left_over(config: Config, left: Unfinished) -> tuple[Subject | None, str]:
    """The pool that an unfinished test was of, None where the configuration lacks it, and the command that
    ends its machine by hand."""
    by_hand = WIRING[left.kind].by_hand(left.placement.region, left.node, left.token)
    if left.pool not in config.pools:
        return None, by_hand
    try:
        return subject(config.only(left.pool), left.kind), by_hand
    except Refused:
        return None, by_hand


async def finish(
    one: Subject, clock: Clock, left: Unfinished, notebook: Notebook, said: Said
) -> Sequence[Passed]:
    """End what an earlier test left, also when this is cancelled, and forget it once that is certain."""
    ports = connect(one.config, clock)
    node = ShortLived(
        instances=ports.instances,
        clock=clock,
        pool=left.pool,
        command=ports.command,
        offerings=(),
        token=left.token,
        said=said,
        by_hand=WIRING[one.kind].by_hand,
    )
    try:
        await surely(
            _finish(node, left, left.request(ports.command.at(left.placement.instance_type)), notebook)
        )
    finally:
        await ports.close()
    return node.steps


async def _finish(node: ShortLived, left: Unfinished, request: LaunchRequest, notebook: Notebook) -> None:
    node.tell(f"ending what an earlier field test left: {left.node or left.token}")
    node.take_up(request, left.node)
    if await node.end() and await _none_living(node, left) and await node.end():
        notebook.forget()


async def _none_living(node: ShortLived, left: Unfinished) -> bool:
    """Take up every other machine of the token that lives. Whether that could be seen."""
    try:
        listed = await node.listed()
    except CloudError as error:
        node.passed(fail(f"whether more is left cannot be seen: {error}", node.by_hand(left.node), "ended"))
        return False
    for machine in listed:
        if machine.token == left.token and machine.state is not InstanceState.TERMINATED:
            node.mind(machine.id, again=machine.state is not InstanceState.SHUTTING_DOWN)
    return True


@contextlib.asynccontextmanager
async def _ports(one: Subject, clock: Clock) -> AsyncIterator[tuple[Ports, Cloud]]:
    """The pool's ports with the listener for node reports, and what is tested of them."""
    ports, listeners = connect(one.config, clock), Listeners()
    preemption, preempt = KINDS[one.kind].preemption, WIRING[one.kind].preempt
    try:
        unheard: dict[str, str] = {}
        if ports.agents is not None:
            try:
                table, names = one.config.pool.agents, one.config.daemon.allowed_hosts
                await listeners.open_agents(one.config.pool_name, table, names, ports.agents)
            except StartError as error:
                unheard[ports.agents.name] = _HELD if one.daemon else str(error)
        if one.daemon and preemption is not None:
            unheard |= {s.name: _HELD for s in ports.notices if s.name.startswith(preemption.alone)}
        agents = None if ports.agents is None or ports.agents.name in unheard else ports.agents
        sources: list[Notices] = [s for s in ports.notices if s.name not in unheard]
        yield (
            ports,
            Cloud(
                instances=ports.instances,
                stops=one.stops,
                preemption=preemption,
                preempt=None if preempt is None else partial(preempt, one.config, clock),
                sources=sources,
                unheard=unheard,
                agent=None if agents is None else lambda node: agents.report(node) is not None,
            ),
        )
    finally:
        await listeners.close()
        await ports.close()
