"""From a configuration to the ports that the daemon works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cloud.agent_keys import NodeKeys
from cloud.agent_receiver import AgentReceiver
from cloud.balancers.gateway import GatewayBalancer
from cloud.dcgm import DcgmExporter
from cloud.engines.dialect import Kind
from cloud.engines.images import IMAGES
from cloud.engines.llamacpp import LlamaCppEngine
from cloud.engines.ollama import OllamaEngine
from cloud.engines.sglang import SglangEngine
from cloud.engines.simulated import SimulatedEngine
from cloud.engines.tei import TeiEngine
from cloud.engines.tgi import TgiEngine
from cloud.engines.trtllm import TrtllmEngine
from cloud.engines.vllm import VllmEngine
from cloud.errors import CloudError
from cloud.local.notices import LocalMetadata
from cloud.logger import structlog
from cloud.ports import (
    Clock,
    Container,
    Engine,
    EngineCommand,
    EngineSpec,
    GpuExporter,
    Instances,
    LoadBalancer,
    Notices,
    Offerings,
    Starts,
)
from orchestrator.config.checks.balancer import keep_alive
from orchestrator.config.load import Config
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.wiring.balancers import balancers
from orchestrator.wiring.clouds import Closable
from orchestrator.wiring.many_clouds import connect_clouds, identify_on_clouds
from policies.model import Instance

log = structlog.get_logger("wiring")

AnyEngine = (
    VllmEngine
    | LlamaCppEngine
    | SglangEngine
    | TgiEngine
    | TeiEngine
    | OllamaEngine
    | TrtllmEngine
    | SimulatedEngine
)
ENGINES: Final[Mapping[Kind, type[AnyEngine]]] = {
    "vllm": VllmEngine,
    "llamacpp": LlamaCppEngine,
    "sglang": SglangEngine,
    "tgi": TgiEngine,
    "tei": TeiEngine,
    "ollama": OllamaEngine,
    "trtllm": TrtllmEngine,
    "simulated": SimulatedEngine,
}


class Owned:
    """Whose a machine is: see `cloud.own_notices.Whose`. `judge` is set by who knows; all may be before.

    Sources of notices ask it: in an account they hear of every machine, whosever it is.
    """

    def __init__(self) -> None:
        self.judge: Callable[[str], bool | None] = lambda _node: None

    def __call__(self, node: str) -> bool:
        """Whether the machine may be the pool's."""
        return self.known(node) is not False

    def known(self, node: str) -> bool | None:
        """Whether it is; None while that is not known."""
        return self.judge(node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside that one pool's loop talks to."""

    instances: Instances
    offerings: Offerings
    notices: tuple[Notices, ...]
    balancers: tuple[LoadBalancer, ...]
    engine: Engine
    command: EngineCommand
    metadata: LocalMetadata | None = None  # gets the nodes to watch
    agents: AgentReceiver | None = None  # one of `notices`, with a listener of its own for reports
    exporter: GpuExporter | None = None  # reads GPUs where agents are silent
    starts: Starts | None = None  # reports starts of nodes
    owned: Owned = field(default_factory=Owned)  # whether a machine may be the pool's, for sources of notices
    others: tuple[Closable, ...] = ()  # closed with the ports, not used otherwise
    leave: Callable[[], None] = lambda: None  # called once the pool is being removed

    async def machines(self, pool: str, within: float) -> Sequence[Instance] | None:
        """What the cloud lists now; None when not every region answers within so many seconds."""
        asked = (self.instances.list(pool, region) for region in self.instances.regions)
        try:
            async with asyncio.timeout(within):
                return [machine for found in await asyncio.gather(*asked) for machine in found]
        except (CloudError, TimeoutError) as error:
            log.warning("instances.read_failed", error=str(error) or "no answer in time")
            return None

    async def close(self) -> None:
        """Release every connection. Touches no node and no target."""
        for source in self.notices:
            await source.close()
        for balancer in self.balancers:
            await balancer.close()
        await self.instances.close()
        await self.offerings.close()
        await self.engine.close()
        if self.exporter is not None:
            await self.exporter.close()
        for other in self.others:
            await other.close()


def engine_command(engine: Engine, pool: PoolConfig, model: str = "") -> EngineCommand:
    """How nodes of the pool start their engine, also on instance types with arguments of their own; `model`
    in place of the pool's."""

    def command(of: PoolConfig) -> EngineCommand:
        spec = engine_spec(of)
        return engine.command(replace(spec, model=model) if model else spec)

    own = {kind: command(pool.on(kind)) for kind in pool.engine.on}
    return replace(command(pool), on=own, container=container_of(pool))


def container_of(pool: PoolConfig) -> Container | None:
    """The container that the pool's engines run in; None where they are programs of their nodes."""
    engine = pool.engine
    if engine.run == "process":
        return None
    return Container(
        image=engine.image,
        runtime=engine.runtime,
        args=engine.container_args,
        volumes=engine.volumes,
        entry=IMAGES[engine.kind].entry,
    )


def engine_spec(pool: PoolConfig) -> EngineSpec:
    """What a node of the pool runs where its instance type has no arguments of its own."""
    container = container_of(pool)
    return EngineSpec(
        model=pool.model_name,
        served_name=pool.served_name,
        task=pool.engine.task,
        args=pool.engine.args,
        env=pool.engine.env,
        executable=pool.engine.executable if container is None else IMAGES[pool.engine.kind].program,
        drain_budget=pool.drain.budget,
        keep_alive=keep_alive(pool),
        container=container,
        vouched=pool.engine.build,
        **_adapters(pool),
    )


def _adapters(pool: PoolConfig) -> dict[str, Any]:
    """Adapters on the engine's command line: those that it has at its start, or how many will come."""
    rules = pool.as_pool("").adapters
    if not rules.runtime:
        return {"adapters": tuple(adapter.location for adapter in rules.wanted)}
    comes = bool(rules.wanted) or pool.adapter_slots is not None
    return {"adapter_room": rules.slots if comes else 0}


def connect(config: Config, clock: Clock) -> Ports:
    """The ports of the configured pool. Opens nothing yet: connections are made at their first use.

    Raises OSError for a file with a key or secret that cannot be read, ValueError for a secret that is none.
    """
    pool, engine = config.pool, engine_with_key(config, clock)
    owned = Owned()
    cloud = connect_clouds(config, clock, owned)
    agents = _agents(config, clock, owned, cloud.instances)
    gateway = _gateway(config, clock)
    return Ports(
        instances=cloud.instances,
        offerings=cloud.offerings,
        notices=(*cloud.notices, *_heard(agents)),
        balancers=(*cloud.balancers, *balancers(config, clock, gateway)) or (gateway,),
        engine=engine,
        command=engine_command(engine, pool),
        metadata=cloud.metadata,
        agents=agents,
        exporter=_exporter(pool, clock),
        starts=cloud.starts or agents,
        owned=owned,
        others=cloud.others,
        leave=gateway.leave,
    )


def _agents(config: Config, clock: Clock, owned: Owned, instances: Instances) -> AgentReceiver | None:
    """What takes the reports of nodes; None while its listener is off."""
    table = config.pool.agents
    if table.listen is None:
        return None
    secret = table.secret()
    agents = AgentReceiver(clock, secret=secret, owned=owned)
    identify = identify_on_clouds(config, instances)
    if identify is not None:
        agents.keys = NodeKeys(clock, secret=secret, identify=identify, owned=owned)
    return agents


def _exporter(pool: PoolConfig, clock: Clock) -> DcgmExporter | None:
    """What reads the GPUs of nodes whose agents are silent; None where no port is given."""
    return None if pool.gpu.dcgm_port is None else DcgmExporter(clock, port=pool.gpu.dcgm_port)


def _heard(agents: AgentReceiver | None) -> tuple[Notices, ...]:
    return () if agents is None else (agents,)


def _gateway(config: Config, clock: Clock) -> GatewayBalancer:
    gateway = config.pool.gateway
    return GatewayBalancer(
        socket=gateway.socket,
        targets_file=gateway.targets_file,
        pool=config.pool_name,
        clock=clock,
        on_file_error=lambda text: log.error("targets_file.write_failed", error=text),
    )


def engine_with_key(config: Config, clock: Clock) -> AnyEngine:
    """The engine, with the key of its file. Raises OSError for a file that cannot be read."""
    key_file = config.pool.engine.api_key_file
    return engine_of(
        config.pool,
        clock,
        api_key=key_file.read_text(encoding="utf-8").strip() if key_file is not None else "",
        probe_timeout=config.daemon.probe_timeout,
    )


def engine_of(pool: PoolConfig, clock: Clock, *, api_key: str = "", probe_timeout: float = 5.0) -> AnyEngine:
    """The engine that every node of the pool runs."""
    served, task = pool.served_name, pool.engine.task
    kind = ENGINES[pool.engine.kind]
    return kind(clock, model_name=served, task=task, api_key=api_key, probe_timeout=probe_timeout)
