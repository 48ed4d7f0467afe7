"""From a configuration to what `orchestrator aws bootstrap` makes, and from its run to what is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloud.aws.bootstrap.run import Bootstrap
from cloud.aws.bootstrap.wanted import Change, Verb, Wanted
from cloud.aws.load_balancer import name_of
from cloud.cloud_init.user_data import NodeSetup, user_data
from cloud.ports import Clock
from orchestrator.config.checks.aws_disk import on_local_disk
from orchestrator.config.checks.engine import gpus_of, stored_weights
from orchestrator.config.load import Config, Problem
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.views import setup as setup_views
from orchestrator.wiring.aws import clients_of
from orchestrator.wiring.ports import engine_command, engine_of
from policies.model_fit import GIB


def node_setup(config: Config, clock: Clock) -> NodeSetup:
    """What makes an instance a node of the pool. Raises OSError for certificates that cannot be read."""
    pool, aws, agents = config.pool, config.pool.cloud.aws, config.pool.agents
    trusted = agents.trusted_file
    aside = bool(aws.weights)
    reports = agents.node_url if aws.node_role else ""  # without a role a node cannot fetch its key
    return NodeSetup(
        pool=config.pool_name,
        command=engine_command(engine_of(pool, clock), pool, model="{model}" if aside else ""),
        port=aws.engine_port,
        secrets=aws.engine_secrets,
        weights=aws.weights,
        gpus=gpus_of(pool),
        gpus_on={kind: gpus_of(pool.on(kind)) for kind in pool.engine.on},
        vllm=pool.engine.kind == "vllm",
        size=0.0 if aside or pool.model.startswith("/") else (stored_weights(pool) or 0.0) * GIB,
        local_disk=on_local_disk(pool),
        report_url=reports,
        trusted=trusted.read_text("utf-8") if reports and trusted is not None else "",
    )


def too_large(config: Config, clock: Clock) -> Iterator[Problem]:
    """Pools that bootstrap would refuse, since what sets up their nodes is larger than EC2 takes."""
    for name in config.pools:
        alone = config.only(name)
        if "aws" in alone.pool.cloud.kinds:
            try:
                user_data(node_setup(alone, clock))
            except ValueError as error:
                yield config.problem(("pool", name, "engine"), f"{error}; `orchestrator aws bootstrap` fails")
            except OSError:
                continue  # a file that bootstrap could not read either, which other checks name


def opened_ports(pool: PoolConfig) -> tuple[int, ...]:
    """The ports of a node that are reached from outside: the engine's, and its DCGM exporter's."""
    exporter = pool.gpu.dcgm_port
    return (pool.cloud.aws.engine_port, *(() if exporter is None else (exporter,)))


def bootstrap_of(config: Config, clock: Clock, *, make_group: bool) -> Bootstrap:
    """The run for a pool; nothing is asked yet. Raises OSError, ValueError."""
    aws, data = config.pool.cloud.aws, user_data(node_setup(config, clock))
    regions = []
    for clients, place in clients_of(config):
        table = aws.regions[place.region]
        wanted = Wanted(
            pool=config.pool_name,
            region=place.region,
            subnets=tuple(place.subnets.values()),
            template=place.template,
            image=place.image,
            profile=aws.profile_name,
            groups=table.security_groups,
            make_group=make_group and not table.security_groups,
            allow_from=table.allow_from,
            ports=opened_ports(config.pool),
            user_data=data,
            queue=table.notice_queue,
            target_group=name_of(aws.target_group),
            idle_timeout=aws.balancer_idle_timeout,
            disk=aws.disk.as_disk(),
            key_name=aws.key_name,
            user_tags=aws.tags,
        )
        regions.append((clients, wanted))
    return Bootstrap(regions)


def view(run: Bootstrap, changes: Sequence[Change], error: str = "") -> setup_views.BootstrapView:
    """A run as it is shown. `changes` is its plan."""
    done = {(change.region, change.kind, change.name) for change in run.done}
    shown = [_part(change, (change.region, change.kind, change.name) in done) for change in changes]
    return setup_views.BootstrapView(
        schema="bootstrap/1",
        ok=not error and not run.refused,
        pending=any(c["verb"] in ("create", "update") and not c["done"] for c in shown),
        parts=shown,
        settings=[
            setup_views.RegionSettingsView(
                region=site.wanted.region,
                launch_template=site.wanted.template,
                launch_template_version=site.version,
                notice_queue=site.queue_url,
            )
            for site in run.sites
        ],
        error=error,
    )


def unwritten(config: Config, shown: setup_views.BootstrapView) -> dict[str, dict[str, str | int]]:
    """What the configuration file does not say yet, by region."""
    found: dict[str, dict[str, str | int]] = {}
    for settings in shown["settings"]:
        region = settings["region"]
        table, missing = config.pool.cloud.aws.regions[region], dict[str, str | int]()
        version, queue = settings["launch_template_version"], settings["notice_queue"]
        if version is not None and version != table.launch_template_version:
            missing["launch_template_version"] = version
        if queue and queue != table.notice_queue:
            missing["notice_queue"] = queue
        if missing:
            found[region] = missing
    return found


def _part(change: Change, done: bool) -> setup_views.PartView:
    return setup_views.PartView(
        region=change.region,
        kind=change.kind,
        name=change.name,
        verb=_VERBS[change.verb],
        done=done,
        differences=[
            setup_views.DifferenceView(field=d.field, before=d.before, after=d.after)
            for d in change.differences
        ],
        kept=[setup_views.KeptView(field=field, value=value) for field, value in change.kept.items()],
        note=change.note,
    )


_VERBS: dict[Verb, setup_views.Verb] = {
    Verb.CREATE: "create",
    Verb.UPDATE: "update",
    Verb.KEEP: "keep",
    Verb.REFUSE: "refuse",
}
