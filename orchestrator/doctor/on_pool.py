"""The checks of one pool: its own arithmetic, and whether the gateway has its targets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.api.client import ClientError, ControlClient
from orchestrator.config.load import Config
from orchestrator.costs.books import read_books
from orchestrator.doctor import pool, running
from orchestrator.doctor.findings import Check, Findings, skipped
from orchestrator.journal.file import JournalError
from policies.cost_report import elapsed
from policies.economics import HOUR
from policies.self_or_api import pools

_ANSWER: Final = 5.0  # s for an answer of the daemon or the gateway
_LOOKS: Final = 4  # at the gateway's targets: a set that is on its way is not a disagreement
_BETWEEN: Final = 1.0  # s
_WEEK: Final = 7 * 24  # hours
_AGENT_POLLS: Final = 5.0  # s between two looks of a node's agent at its metadata


class PoolDoctor:
    """What can be found out about one pool without asking its cloud. `config` has that pool alone."""

    def __init__(self, config: Config, clock: Clock, threads: WorkerThreads) -> None:
        self._clock, self._threads, self._config = clock, threads, config
        self._daemon, self._name, self._settings = config.daemon, config.pool_name, config.pool
        self._pool = config.wanted
        self._gateway = None if self._settings.cloud.target_group else self._settings.gateway

    def checks(self) -> list[Check]:
        """Every check."""
        looks: list[tuple[str, str, Callable[[], Findings]]] = [
            ("daemon", "continuation", self._continuation),
            ("pool", "drain", lambda: pool.drain(self._pool.drain, self._notices())),
            ("pool", "capacity", lambda: pool.capacity(self._pool, self._zones())),
            ("pool", "engine", self._engine),
            ("pool", "proof", self._proof),
            ("pool", "break-even", self._break_even),
        ]
        found = [Check(group=g, name=name, look=_in(self._threads, look)) for g, name, look in looks]
        return [*found, Check(group="daemon", name="gateway", look=self._gateway_agrees)]

    async def _gateway_agrees(self) -> Findings:
        """Looked at a few times: targets may be changing just now."""
        if self._gateway is None:
            return [skipped("a target group gets the requests instead of the gateway")]
        for look in range(_LOOKS):
            if look:
                await self._clock.sleep(_BETWEEN)
            said, error = await self._threads.run(self._gateway_says)
            wanted = await self._threads.run(self._wanted)
            held = None if said is None else said.held
            findings = running.gateway(
                held,
                wanted,
                error,
                file_fault="" if said is None else said.file_fault,
                limits_alone="" if said is None else said.limits_alone,
                usage_fault="" if said is None else said.usage_fault,
            )
            if held is None or wanted is None or not any(f.advice for f in findings):
                break
        return findings

    def _continuation(self) -> Findings:
        if self._gateway is None:
            return [skipped("a target group gets the requests instead of the gateway")]
        said, _ = self._gateway_says()
        return running.continuation(self._gateway.continuation, None if said is None else said.continues)

    def _notices(self) -> dict[str, float]:
        """What each source of notices leaves at worst, in seconds."""
        cloud = self._settings.cloud
        if cloud.here:
            return {"local-feed": self._settings.starts.notice}
        found = dict(cloud.sources())
        if self._settings.agents.listen is not None:
            found["node-agent"] = cloud.traits.notice - _AGENT_POLLS
        return found

    def _zones(self) -> int:
        return self._settings.cloud.zones()

    def _engine(self) -> Findings:
        return pool.engine(self._settings.engine, self._settings.cloud.here)

    def _proof(self) -> Findings:
        """How what the pool uses is proved."""
        used: list[str] = [table.kind for table in self._settings.balancer]
        used += ["target-group"] if self._settings.cloud.target_group else []
        return pool.proof(self._settings.cloud.rows, used or ["gateway"], self._settings.engine.kind)

    def _break_even(self) -> Findings:
        """What the last week cost against the API, by what gateways and daemon counted."""
        now = self._clock.now()
        until = int(now // HOUR) + 1
        try:
            books, missing = read_books(
                self._config, since=until - _WEEK, until=until, now=now, pool=self._name
            )
        except JournalError as error:
            return [skipped(str(error))]
        standing = next(one for one in pools(books) if one.pool.name == self._name)
        accepted = "utilisation" in self._settings.accepted
        return [*pool.pays(standing, elapsed(books), accepted), *map(skipped, missing)]

    def _wanted(self) -> dict[str, str] | None:
        """The daemon's target set: node to phase."""
        try:
            plan = ControlClient(self._daemon.socket, timeout=_ANSWER).plan()
        except ClientError:
            return None
        of_pool = [one for one in plan["pools"] if one["name"] == self._name]
        return {target["id"]: target["phase"] for one in of_pool for target in one["targets"]}

    def _gateway_says(self) -> tuple[_GatewayFacts | None, str]:
        """What the gateway says of itself and its targets, or why there is nothing."""
        if self._gateway is None:
            return None, ""
        path = self._gateway.socket
        try:
            client = ControlClient(path, timeout=_ANSWER)
            return _GatewayFacts.of(client.get(f"/v1/state?pool={self._name}")), ""
        except ClientError:
            return None, f"nothing answers on {path}"
        except (KeyError, TypeError, AttributeError):
            return None, f"what answers on {path} is no gateway of this version"


@dataclass(frozen=True, slots=True, kw_only=True)
class _GatewayFacts:
    """What a gateway says: its target set (node to phase), why it does not take its file, why it does not
    share the limits of keys, why it does not write what was used, and whose answers others can finish (None
    for a gateway of a version that does not ask)."""

    held: dict[str, str]
    file_fault: str
    limits_alone: str
    usage_fault: str
    continues: list[running.Continues] | None

    @staticmethod
    def of(state: Mapping[str, Any]) -> _GatewayFacts:
        """The body of GET /v1/state. Raises KeyError, TypeError, AttributeError for one of another shape."""
        rows = state["targets"]
        return _GatewayFacts(
            held={row["id"]: row["phase"] for row in rows if row["phase"] is not None},
            file_fault=str(state["file_fault"]),
            limits_alone=str(state.get("limits_alone", "")),
            usage_fault=str(state.get("usage", {}).get("fault", "")),
            continues=[
                running.Continues(node=row["id"], way=str(said["way"]), why=str(said.get("why", "")))
                for row in rows
                if (said := row["continuation"])
            ]
            if all("continuation" in row for row in rows)
            else None,
        )


def _in(threads: WorkerThreads, look: Callable[[], Findings]) -> Callable[[], Awaitable[Findings]]:
    return partial(threads.run, look)
