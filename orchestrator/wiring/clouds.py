"""From the table of a kind of cloud to its adapters. What a kind needs is imported when a pool uses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from cloud.agent_keys import Identify
from cloud.azure.machines import name_of
from cloud.kinds import CloudName
from cloud.local.notices import LocalMetadata
from cloud.own_notices import Whose
from cloud.ports import Clock, Instances, LoadBalancer, Notices, Offerings, Starts
from orchestrator.config.load import Config
from policies.model import Instance

Judge = Callable[[str], bool]
"""Says False of a machine that is certainly not the pool's."""


class Closable(Protocol):
    """Something that holds connections."""

    async def close(self) -> None:
        """Release them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudPorts:
    """What a pool talks to of its cloud. Nothing was asked yet."""

    instances: Instances
    offerings: Offerings
    notices: tuple[Notices, ...]
    balancers: tuple[LoadBalancer, ...] = ()  # empty where the gateway gets the requests
    metadata: LocalMetadata | None = None  # gets the nodes to watch
    starts: Starts | None = None  # reports starts of nodes; None: their agents do
    others: tuple[Closable, ...] = field(default=())  # closed with the rest, not used otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudWiring:
    """How a kind is wired. `prices`: what is sold, for a look at prices without a daemon, with so many
    seconds for one price list. `identify`: who judges which node asks for its key; None for nobody."""

    connect: Callable[[Config, Clock, Whose], CloudPorts]
    prices: Callable[[Config, Clock, float], Offerings] | None = None
    identify: Callable[[Config], Identify | None] = lambda _config: None
    by_hand: Callable[[str, str, str], str]
    """What a person types to end a machine: of a region, by its id, or by its token where that is empty."""
    preempt: Callable[[Config, Clock, Instance], Awaitable[None]] | None = None
    """Does what `cloud.kinds.Preemption` says, and returns once the cloud has taken it. Raises CloudError."""


def _local(config: Config, clock: Clock, owned: Judge) -> CloudPorts:
    from orchestrator.wiring.local import connect_local

    return connect_local(config, clock, owned)


def _aws(config: Config, clock: Clock, owned: Whose) -> CloudPorts:
    from orchestrator.wiring.aws import connect_aws

    return connect_aws(config, clock, owned)


def _aws_prices(config: Config, clock: Clock, patience: float) -> Offerings:
    from orchestrator.wiring.aws import prices_of_aws

    return prices_of_aws(config, clock, patience)


def _aws_identify(config: Config) -> Identify | None:
    from orchestrator.wiring.aws import identify_on_aws

    return identify_on_aws(config)


async def _preempt_on_aws(config: Config, clock: Clock, machine: Instance) -> None:
    from orchestrator.wiring.aws import preempt_on_aws

    await preempt_on_aws(config, clock, machine)


def _gcp(config: Config, clock: Clock, owned: Judge) -> CloudPorts:
    from orchestrator.wiring.gcp import connect_gcp

    return connect_gcp(config, clock, owned)


def _gcp_prices(config: Config, clock: Clock, patience: float) -> Offerings:
    from orchestrator.wiring.gcp import prices_of_gcp

    return prices_of_gcp(config, clock, patience)


def _gcp_identify(config: Config) -> Identify | None:
    from orchestrator.wiring.gcp import identify_on_gcp

    return identify_on_gcp(config)


async def _preempt_on_gcp(config: Config, clock: Clock, machine: Instance) -> None:
    from orchestrator.wiring.gcp import preempt_on_gcp

    await preempt_on_gcp(config, clock, machine)


def _end_on_gcp(_region: str, node: str, token: str) -> str:
    if node:
        return f"gcloud compute instances delete {node}"
    return f"gcloud compute instances list --filter='metadata.items.value={token}', and delete what it shows"


def _azure(config: Config, clock: Clock, owned: Judge) -> CloudPorts:
    from orchestrator.wiring.azure import connect_azure

    return connect_azure(config, clock, owned)


def _azure_prices(config: Config, clock: Clock, patience: float) -> Offerings:
    from orchestrator.wiring.azure import prices_of_azure

    return prices_of_azure(config, clock, patience)


async def _preempt_on_azure(config: Config, clock: Clock, machine: Instance) -> None:
    from orchestrator.wiring.azure import preempt_on_azure

    await preempt_on_azure(config, clock, machine)


def _end_on_azure(_region: str, node: str, token: str) -> str:
    name = node or name_of(token)
    return f"az vm delete --yes --ids $(az vm list --query \"[?name=='{name}'].id\" --output tsv)"


def _end_local(_region: str, node: str, token: str) -> str:
    return f"end {node or token} in the local cloud, or stop the local cloud"


def _end_on_aws(region: str, node: str, token: str) -> str:
    end = f"aws ec2 terminate-instances --region {region} --instance-ids"
    if node:
        return f"{end} {node}"
    return (
        f"{end} $(aws ec2 describe-instances --region {region} --filters "
        f"Name=client-token,Values={token} --query 'Reservations[].Instances[].InstanceId' --output text)"
    )


def _skypilot(config: Config, clock: Clock, owned: Judge) -> CloudPorts:
    from orchestrator.wiring.skypilot import connect_skypilot

    return connect_skypilot(config, clock, owned)


def _skypilot_prices(config: Config, clock: Clock, patience: float) -> Offerings:
    from orchestrator.wiring.skypilot import prices_of_skypilot

    return prices_of_skypilot(config, clock, patience)


def _end_through_skypilot(region: str, node: str, token: str) -> str:
    from cloud.skypilot.instances import cluster_of

    named = node or f"the one whose name begins with {cluster_of(token)}"
    return f"end {named} in {region} in the console of its cloud; the ledger says which token it has"


WIRING: Final[Mapping[CloudName, CloudWiring]] = MappingProxyType(
    {
        "local": CloudWiring(connect=_local, by_hand=_end_local),
        "gcp": CloudWiring(
            connect=_gcp,
            prices=_gcp_prices,
            identify=_gcp_identify,
            by_hand=_end_on_gcp,
            preempt=_preempt_on_gcp,
        ),
        "azure": CloudWiring(
            connect=_azure, prices=_azure_prices, by_hand=_end_on_azure, preempt=_preempt_on_azure
        ),
        "aws": CloudWiring(
            connect=_aws,
            prices=_aws_prices,
            identify=_aws_identify,
            by_hand=_end_on_aws,
            preempt=_preempt_on_aws,
        ),
        "skypilot": CloudWiring(connect=_skypilot, prices=_skypilot_prices, by_hand=_end_through_skypilot),
    }
)
