"""The adapters of a pool's clouds: those of one kind as they are, those of several as one.

Each kind is wired with the pool on it alone, so no kind knows of another. Where the adapters of one of
several cannot be made, for want of a package or a file, the pool runs on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloud.agent_keys import Identify
from cloud.errors import CloudError, Denied, Misconfigured
from cloud.kinds import KINDS, CloudName
from cloud.logger import structlog
from cloud.many import AbsentInstances, AbsentOfferings, ManyInstances, ManyOfferings
from cloud.own_notices import Whose
from cloud.ports import Clock, Instances, Offerings
from orchestrator.config.load import Config
from orchestrator.wiring.clouds import WIRING, CloudPorts

log = structlog.get_logger("wiring")


def connect_clouds(config: Config, clock: Clock, owned: Whose) -> CloudPorts:
    """What the only pool of a configuration talks to of its clouds. Nothing is asked yet.

    Raises what the adapters of a kind raise where no other kind is left, OSError or ValueError.
    """
    kinds = config.pool.cloud.kinds
    if len(kinds) == 1:
        return WIRING[kinds[0]].connect(config, clock, owned)
    found: dict[CloudName, CloudPorts] = {}
    last: Exception | None = None
    for kind in kinds:
        alone = config.on_cloud(kind)
        try:
            found[kind] = WIRING[kind].connect(alone, clock, owned)
        except Exception as error:
            log.exception("cloud.not_connected", pool=config.pool_name, cloud=kind)
            found[kind], last = _absent(kind, alone, error), error
    if last is not None and all(isinstance(ports.instances, AbsentInstances) for ports in found.values()):
        raise last
    return CloudPorts(
        instances=ManyInstances({kind: ports.instances for kind, ports in found.items()}),
        offerings=ManyOfferings({kind: ports.offerings for kind, ports in found.items()}),
        notices=tuple(source for ports in found.values() for source in ports.notices),
        others=tuple(other for ports in found.values() for other in ports.others),
    )


def prices_of_clouds(config: Config, clock: Clock, patience: float) -> Offerings:
    """What is sold to the only pool, with so many seconds for one price list. Raises Misconfigured where
    nobody bills for its machines."""
    found: dict[str, Offerings] = {}
    for kind in config.pool.cloud.kinds:
        prices = WIRING[kind].prices
        if prices is None:
            raise Misconfigured(f"{KINDS[kind].title} has no price list")
        found[kind] = prices(config.on_cloud(kind), clock, patience)
    return ManyOfferings(found) if len(found) > 1 else next(iter(found.values()))


def identify_on_clouds(config: Config, instances: Instances) -> Identify | None:
    """Who judges which node asks for its key; None for nobody. `instances`: those of `connect_clouds`."""
    judges: dict[CloudName, Identify] = {}
    for kind in config.pool.cloud.kinds:
        judge = WIRING[kind].identify(config.on_cloud(kind))
        if judge is not None:
            judges[kind] = judge
    if not isinstance(instances, ManyInstances):
        return next(iter(judges.values()), None)
    return any_of(judges, instances.provider_of) if judges else None


def any_of(judges: Mapping[CloudName, Identify], provider_of: Callable[[str], str]) -> Identify:
    """A node proves to one of these who it is; proofs of one cloud are none to another. `provider_of` a
    machine: no cloud speaks for a machine of another, whatever its machines are called."""

    async def identify(headers: Mapping[str, str], challenge: str) -> str:
        said: list[str] = []
        unsure: CloudError | None = None
        for kind, judge in judges.items():
            try:
                node = await judge(headers, challenge)
                if provider_of(node) not in ("", kind):
                    raise Denied(f"{node} is a machine of another cloud")
                return node
            except Denied as error:
                said.append(f"{KINDS[kind].title}: {error}")
            except CloudError as error:
                unsure = error
        raise unsure or Denied("; ".join(said))

    return identify


def by_hand_on_clouds(config: Config) -> Callable[[str, str, str], str]:
    """What a person types to end a machine; see `CloudWiring.by_hand`."""

    def by_hand(region: str, node: str, token: str) -> str:
        cloud = config.pool.cloud
        kinds = [kind for kind in cloud.kinds if region in cloud.only(kind).prices()]
        return WIRING[(kinds or cloud.kinds)[0]].by_hand(region, node, token)

    return by_hand


def _absent(kind: CloudName, config: Config, error: Exception) -> CloudPorts:
    why = (
        f"{KINDS[kind].title} is not used: {str(error) or type(error).__name__}; once that is fixed, restart "
        "the daemon"
    )
    return CloudPorts(
        instances=AbsentInstances(tuple(config.pool.cloud.prices()), why),
        offerings=AbsentOfferings(why),
        notices=(),
    )
