"""From the [pool.NAME.cloud.aws] tables to the adapters of AWS. Imported only for `cloud.kind = "aws"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cloud.aws.clients import AwsClients
from cloud.aws.field.interruption import interrupt
from cloud.aws.identity import CallerIdentity
from cloud.aws.instance_status import InstanceStatusNotices
from cloud.aws.instances import AwsInstances
from cloud.aws.load_balancer import AlbTargetGroup, Key
from cloud.aws.notice_calls import NoticeCalls
from cloud.aws.notice_queue import QueueNotices
from cloud.aws.offerings import AwsOfferings
from cloud.aws.places import AwsRegion, Reservation
from cloud.aws.spot_requests import SpotRequestNotices
from cloud.own_notices import OwnNotices, Whose
from cloud.ports import Clock, LoadBalancer, Notices, Offerings
from orchestrator.config.load import Config
from orchestrator.config.tables.aws import AwsTable
from orchestrator.metrics.calls import aws_call_ended
from orchestrator.wiring.clouds import CloudPorts
from policies.model import Instance

_CONNECT = 2.0  # s

_TURN = 0.5
"""Share of the time of a call on a machine that it waits for its turn."""

_SHARE = 0.8
"""Share of the time of a whole look that one type of the price list gets."""


def connect_aws(config: Config, clock: Clock, owned: Whose) -> CloudPorts:
    """The adapters of the configured pool. Makes no call yet."""
    table, name = config.pool.cloud.aws, config.pool_name
    regions = clients_of(config)
    instances = AwsInstances(regions, clock=clock, patience=_TURN * config.daemon.call_timeout)
    calls = [NoticeCalls(clients) for clients, _ in regions]
    return CloudPorts(
        instances=instances,
        offerings=AwsOfferings(regions, clock=clock, patience=_SHARE * config.daemon.call_timeout),
        notices=tuple(
            OwnNotices(source, clock, whose=owned)
            for source in _notices(table, name, [place for _, place in regions], calls, clock, owned)
        ),
        balancers=_balancers(table, name, instances, regions[0][0], clock),
        others=tuple(calls),
    )


def prices_of_aws(config: Config, clock: Clock, patience: float) -> Offerings:
    """What EC2 sells in the configured places, with so many seconds for one type of the price list."""
    return AwsOfferings(clients_of(config), clock=clock, patience=patience)


def identify_on_aws(config: Config) -> CallerIdentity | None:
    """Who judges the signatures of nodes; None for a pool whose nodes have no role."""
    aws = config.pool.cloud.aws
    if not aws.node_role:
        return None
    return CallerIdentity(role=aws.node_role, regions=aws.regions, endpoint=aws.endpoint)


async def preempt_on_aws(config: Config, clock: Clock, machine: Instance) -> None:
    """Have FIS interrupt a spot machine. Raises CloudError."""
    found = {place.region: clients for clients, place in clients_of(config)}
    await interrupt(found[machine.placement.region], machine, clock)


def clients_of(config: Config) -> list[tuple[AwsClients, AwsRegion]]:
    """The clients of each region. A call gives up before the daemon gives it up, so that its thread is free
    again."""
    table = config.pool.cloud.aws
    read = max(1.0, config.daemon.call_timeout - _CONNECT)
    return [
        (
            AwsClients(
                place.region,
                endpoint=table.endpoint,
                profile=table.profile,
                read_timeout=read,
                connect_timeout=_CONNECT,
                call_ended=aws_call_ended,
            ),
            place,
        )
        for place in places(table)
    ]


def places(table: AwsTable) -> list[AwsRegion]:
    """The regions of the tables, as the adapters take them."""
    return [
        AwsRegion(
            region=name,
            subnets=region.subnets,
            instance_types=table.instance_types,
            template=region.launch_template,
            template_version=str(region.launch_template_version),
            image=region.image,
            engine_port=table.engine_port,
            on_demand_prices=region.on_demand_prices,
            tags=table.tags,
            reservations=tuple(
                Reservation(
                    id=held,
                    zone=kept.zone,
                    instance_type=kept.instance_type,
                    price=kept.price,
                    block=kept.block,
                )
                for held, kept in region.reservations.items()
            ),
        )
        for name, region in table.regions.items()
    ]


def _notices(
    table: AwsTable,
    pool: str,
    regions: Sequence[AwsRegion],
    calls: Sequence[NoticeCalls],
    clock: Clock,
    owned: Callable[[str], bool],
) -> list[Notices]:
    """Three sources a region, two without a queue, named after it when there are several."""
    found: list[Notices] = []
    for place, asked in zip(regions, calls, strict=True):
        suffix = f"-{place.region}" if len(regions) > 1 else ""
        queue = table.regions[place.region].notice_queue
        if queue:
            nodes = partial(asked.nodes_in_reservation, pool)
            name = f"aws-queue{suffix}"
            found.append(
                QueueNotices(asked, clock, url=queue, owned=owned, reservation_nodes=nodes, name=name)
            )
        found.append(
            SpotRequestNotices(
                asked,
                clock,
                owned=owned,
                interval=table.poll_spot_requests,
                name=f"aws-spot-requests{suffix}",
            )
        )
        found.append(
            InstanceStatusNotices(
                asked,
                clock,
                owned=owned,
                interval=table.poll_instance_status,
                name=f"aws-instance-status{suffix}",
            )
        )
    return found


def _balancers(
    table: AwsTable, pool: str, instances: AwsInstances, clients: AwsClients, clock: Clock
) -> tuple[LoadBalancer, ...]:
    if not table.target_group:
        return ()

    async def owners(targets: Sequence[Key]) -> Mapping[Key, str]:
        return await instances.owners(pool, targets)

    return (AlbTargetGroup(clients, group=table.target_group, owners=owners, clock=clock),)
