"""What keeps a pool from running on EC2, whether its model fits there, and what is doubtful."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Final

from cloud.aws import tags
from cloud.aws.balancer_settings import IDLE_TIMEOUTS
from cloud.engines.flags import GPUS, has_flag
from orchestrator.config.checks.aws_disk import WEIGHTS, disk_errors, disk_warnings
from orchestrator.config.checks.engine import gpus_of, verdicts
from orchestrator.config.tables.aws import ROLE, AwsRegionTable, AwsTable, ReservationTable
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import format_duration, shown
from policies.model import Market

_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_RESERVATION: Final = re.compile(r"cr-[0-9a-f]{8,17}")
_SECRET: Final = re.compile(
    r"arn:aws[a-z-]*:(ssm:[a-z0-9-]+:\d{12}:parameter|secretsmanager:[a-z0-9-]+:\d{12}:secret)[/:][!-~]+"
)
_ACCOUNT_QUEUE: Final = re.compile(r"https?://\S+")
_KEY_NAME: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_SECRET_NAME: Final = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$", re.IGNORECASE)
_TOKEN: Final = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|(AKIA|ASIA)[A-Z0-9]{12,})")
_SHORTEST_TOKEN: Final = 8  # characters; shorter ones are switches
_LEAST: Final = {Market.ON_DEMAND: 0.35, Market.SPOT: 0.08}
"""USD/h below which EC2 has sold no machine with a GPU: g4ad.xlarge was 0.379 on demand in us-east-1."""


Found = tuple[tuple[str, ...], str]  # key path, sentence


def aws_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What keeps a pool from running on EC2."""
    from cloud.aws.load_balancer import PROPAGATION

    aws, at = pool.cloud.aws, (*at, "cloud", "aws")
    if not aws.instance_types:
        yield (*at, "instance_types"), 'is missing; write instance_types = ["p5.4xlarge"]'
    for name in sorted(pool.units.keys() - set(aws.instance_types)) if aws.instance_types else ():
        yield (
            (*at[:-2], "units", name),
            f"{shown(name)} is not one of cloud.aws.instance_types; correct the name or add the type there",
        )
    if not aws.allow_unknown_types:
        for name in _unknown_types(aws):
            yield (*at, "instance_types"), f"{shown(name)} is not an instance type of EC2{_instead_of(name)}"
    if not aws.regions:
        yield (*at, "regions"), f"is missing; write a table [{'.'.join(at)}.regions.us-east-1]"
    if aws.poll_spot_requests <= 0:
        yield (*at, "poll_spot_requests"), 'is 0, which leaves no time at all; write "5s"'
    if not 1.0 <= aws.poll_instance_status <= 60.0:
        yield (*at, "poll_instance_status"), 'must be from "1s" to "60s", when its silence is an alarm'
    if aws.target_group and len(aws.regions) > 1:
        yield (
            (*at, "target_group"),
            "one target group serves one region, and several are given; use the gateway or one region",
        )
    if aws.target_group and "settle" in pool.drain.model_fields_set and pool.drain.settle < PROPAGATION:
        yield (
            (*at[:-2], "drain", "settle"),
            f"{format_duration(pool.drain.settle)} is too short with a target group: its balancer may go "
            f"on sending requests to a drained node for {format_duration(PROPAGATION)}; write that or "
            "more, or leave it out",
        )
    if aws.node_role and not ROLE.fullmatch(aws.node_role):
        yield (
            (*at, "node_role"),
            f"{shown(aws.node_role)} is not the ARN of a role; write arn:aws:iam::ACCOUNT:role/NAME",
        )
    for variable, arn in aws.engine_secrets.items():
        if not _SECRET.fullmatch(arn):
            yield (
                (*at, "engine_secrets", variable),
                "is not the ARN of a parameter of SSM or of a secret of Secrets Manager; "
                "the secret itself must not stand here",
            )
        elif not aws.node_role:
            yield (*at, "node_role"), "is missing; nodes fetch the engine's secrets with their role"
            break
    yield from _machine_errors(at, aws)
    for name, region in aws.regions.items():
        yield from _region_errors((*at, "regions", name), name, region)
        for held, table in region.reservations.items():
            where = (*at, "regions", name, "reservations", held)
            yield from _reservation_errors(where, held, table, region, aws.instance_types)
    for name, verdict in verdicts(pool):
        if not verdict.fits and not verdict.tight:
            yield (*at, "instance_types"), f"{name}: {verdict.text}"


def _machine_errors(at: tuple[str, ...], aws: AwsTable) -> Iterator[Found]:
    """What EC2 would refuse of tags, key pair, weights and disks."""
    for key, text in tags.faults(aws.tags).items():
        yield (*at, "tags", *([key] if key else [])), text
    if aws.key_name and not _KEY_NAME.fullmatch(aws.key_name):
        yield (*at, "key_name"), f"{shown(aws.key_name)} is not the name of a key pair of EC2"
    if aws.weights and not WEIGHTS.fullmatch(aws.weights):
        yield (
            (*at, "weights"),
            f"{shown(aws.weights)} is neither s3://BUCKET/PREFIX nor an absolute path on the node",
        )
    if not IDLE_TIMEOUTS[0] <= aws.balancer_idle_timeout <= IDLE_TIMEOUTS[1]:
        yield (
            (*at, "balancer_idle_timeout"),
            f"{format_duration(aws.balancer_idle_timeout)} is none that a load balancer can have; they go "
            "from 1s to 4000s",
        )
    yield from disk_errors((*at, "disk"), aws.disk, aws.regions)


def aws_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What is doubtful about a pool on EC2."""
    from cloud.aws.catalogue import catalogue

    aws, at = pool.cloud.aws, (*at, "cloud", "aws")
    table = catalogue()
    unknown = _unknown_types(aws)
    for name in unknown:
        yield (
            (*at, "instance_types"),
            f"{name} is not in the table of instance types of this version; a wrong name is found by "
            "the first launch",
        )
    for name in aws.instance_types:
        if name not in table.types and name not in unknown:
            yield (
                (*at, "instance_types"),
                f"{name} is not in the table of GPU types of {table.as_of}, so nobody has checked that the "
                "model fits; correct the name if it is wrong",
            )
    for name, verdict in verdicts(pool):
        if verdict.tight:
            yield (*at, "instance_types"), f"{name} is a close fit by estimate: {verdict.text}"
    yield from _idle_gpus(at, pool)
    yield from _less_than_anything(at, pool)
    yield from disk_warnings((*at, "disk"), pool)
    yield from _open_secrets(at, pool)
    if pool.agents.listen is not None and not aws.node_role:
        yield (
            (*at, "node_role"),
            "is not set, so nodes cannot fetch their keys from agents.listen; give them to nodes by other "
            "means, or write the ARN of their role",
        )
    for name, region in aws.regions.items():
        if not region.notice_queue:
            yield (
                (*at, "regions", name, "notice_queue"),
                "is not set, so only the status of spot requests shows interruptions; "
                "make a queue with `orchestrator aws bootstrap` and write its URL",
            )


def shared_on_aws(parsed: ConfigFile) -> Iterator[Found]:
    """Target groups and queues that two pools name: each would undo what the other did, or hear its
    notices."""
    groups: dict[str, str] = {}
    queues: dict[str, str] = {}
    for name, pool in parsed.pool.items():
        if "aws" not in pool.cloud.kinds:
            continue
        at, aws = ("pool", name, "cloud", "aws"), pool.cloud.aws
        first = groups.setdefault(aws.target_group, name) if aws.target_group else name
        if first != name:
            yield (
                (*at, "target_group"),
                f"is that of pool {first} too, and each pool would take the other's nodes out of it; write "
                "one of its own",
            )
        for region, settings in aws.regions.items():
            queue = settings.notice_queue
            first = queues.setdefault(queue, name) if queue else name
            if first != name:
                yield (
                    (*at, "regions", region, "notice_queue"),
                    f"is that of pool {first} too, and a message is heard by one reader: notices would be "
                    "lost; write a queue of its own",
                )


def _idle_gpus(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """GPUs that are paid for and that the engine does not use."""
    from cloud.aws.catalogue import catalogue

    for name in pool.cloud.aws.instance_types:
        known = catalogue().types.get(name)
        there = known.gpus.count if known is not None else 0
        used = gpus_of(pool.on(name), there)
        if 0 < used < there:
            yield (
                (*at[:-2], "engine", "args"),
                f"the engine uses {used} of the {there} GPUs of {name}, and all are paid for; write "
                f"--tensor-parallel-size {GPUS}, --data-parallel-size for several copies of the model, or a "
                "type with as many GPUs as it uses",
            )


def _less_than_anything(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """A cap that is no price of such machines, where nobody has looked prices up."""
    from cloud.aws.catalogue import catalogue

    wanted, kinds = pool.as_pool(at[1]), pool.cloud.aws.instance_types
    cap = wanted.limits.spend_per_hour
    if cap is None or not kinds or not all(kind in catalogue().types for kind in kinds):
        return
    wanted_of = {Market.ON_DEMAND: wanted.on_demand_floor, Market.SPOT: wanted.spot_wanted}
    least = sum(-(-units // wanted.largest) * _LEAST[market] for market, units in wanted_of.items())
    if cap < least:
        yield (
            (*at[:-2], "limits", "spend_per_hour"),
            f"${cap:,.2f} an hour is less than {wanted.replicas} {wanted.noun(wanted.replicas)} cost "
            f"anywhere: no machine with a GPU is below about ${_LEAST[Market.ON_DEMAND]:.2f} on demand "
            f"and ${_LEAST[Market.SPOT]:.2f} on spot; `orchestrator validate --prices` asks what these cost",
        )


def _open_secrets(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What looks like a secret and stands in the file. It is not shown."""
    engine, own = (*at[:-2], "engine"), pool.engine.on.values()
    args = [*pool.engine.args, *(word for each in own for word in each.args)]
    who = "the nodes' user-data, readable by everyone who may describe the launch template"
    for name, value in pool.engine.env.items():
        if _TOKEN.search(value) or (_SECRET_NAME.search(name) and len(value) >= _SHORTEST_TOKEN):
            yield (
                (*engine, "env", name),
                f"looks like a secret and travels in {who}; keep it in SSM or Secrets Manager, and write "
                f"its ARN as cloud.aws.engine_secrets.{name}",
            )
    if has_flag(args, "--api-key") or any(map(_TOKEN.search, args)):
        yield (
            (*engine, "args"),
            f"hold what looks like a secret; it travels in {who}, and every list of processes shows it; "
            "keep it in SSM or Secrets Manager, and write its ARN as cloud.aws.engine_secrets.VLLM_API_KEY "
            "(or HF_TOKEN)",
        )


def _unknown_types(aws: AwsTable) -> list[str]:
    from cloud.aws.catalogue import instance_types

    return [name for name in aws.instance_types if name not in instance_types()]


def _instead_of(name: str) -> str:
    """What to write instead of an instance type that does not exist."""
    from cloud.aws.catalogue import instance_types

    close = difflib.get_close_matches(name.lower(), sorted(instance_types()), n=1)
    newer = "for a type that is newer than this version, write allow_unknown_types = true"
    return f"; did you mean {close[0]}? ({newer})" if close else f"; correct the name, or {newer}"


def _reservation_errors(
    at: tuple[str, ...], held: str, table: ReservationTable, region: AwsRegionTable, types: tuple[str, ...]
) -> Iterator[Found]:
    if not _RESERVATION.fullmatch(held):
        yield (
            at,
            f"{shown(held)} is not the id of a capacity reservation; write one such as cr-0123456789abcdef0",
        )
    if table.zone not in region.subnets:
        zones = ", ".join(sorted(region.subnets))
        yield (
            (*at, "zone"),
            f"{shown(table.zone)} has no subnet here; write the reservation's zone, of {zones}",
        )
    if table.instance_type not in types:
        yield (
            (*at, "instance_type"),
            f"{shown(table.instance_type)} is not one of cloud.aws.instance_types; write the type reserved",
        )
    if table.price <= 0.0:
        yield (*at, "price"), 'is missing; write what an hour of one machine in it costs you, such as "6.80"'


def _region_errors(at: tuple[str, ...], name: str, region: AwsRegionTable) -> Iterator[Found]:
    if not _REGION.fullmatch(name):
        yield at, f"{shown(name)} is not the name of a region; write one such as us-east-1"
    if not region.subnets:
        yield (*at, "subnets"), f'is missing; write subnets = {{{name}a = "subnet-..."}}, one for each zone'
    for zone in region.subnets:
        if not zone.startswith(name):
            yield (*at, "subnets", zone), f"{shown(zone)} is not a zone of {name}; write it in its own region"
    if not region.launch_template:
        yield (*at, "launch_template"), "is missing; write the name of the launch template of the nodes"
    if region.notice_queue and not _ACCOUNT_QUEUE.fullmatch(region.notice_queue):
        yield (*at, "notice_queue"), f"{shown(region.notice_queue)} is not a URL; write the queue's URL"
