"""The looks at what launches use in one region: facts of `cloud.aws.doctor`, judged by the `aws_` modules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cloud.aws import iam
from cloud.aws.clients import AwsClients
from cloud.aws.doctor import account, disks, launch, roles, routes
from cloud.aws.doctor.dry_launches import DryLaunches
from cloud.aws.doctor.launch import ImageFacts, TemplateFacts
from cloud.aws.doctor.whereabouts import own_network
from cloud.aws.errors import code_of, error_text
from cloud.aws.instances import AwsInstances
from cloud.aws.places import AwsRegion
from cloud.aws.spot_role import SPOT_ROLE, spot_role_arn
from cloud.errors import CloudError, NotFound
from cloud.ports import Clock
from orchestrator.config.checks.engine import stored_weights
from orchestrator.config.load import Config
from orchestrator.doctor import aws_disks, aws_dry_launches, aws_launch, aws_roles, aws_routes, reach
from orchestrator.doctor.aws_routes import Needs
from orchestrator.doctor.findings import Finding, Findings, skipped
from orchestrator.wiring.ports import engine_with_key
from policies.model import InstanceState
from policies.model_fit import GIB

Look = Callable[[], Awaitable[Findings]]


class LaunchLooks:
    """What can be asked of AWS about the launches of one region of a pool."""

    def __init__(
        self,
        config: Config,
        clients: AwsClients,
        place: AwsRegion,
        *,
        tried: DryLaunches,
        file: str,
        clock: Clock,
    ) -> None:
        self._config, self._pool, self._file = config, config.wanted, file
        self._clients, self._place, self._tried, self._clock = clients, place, tried, clock

    def all(self) -> dict[str, Look]:
        """Each look by the name of its check."""
        return {
            "template": self._template,
            "image": self._image,
            "disks": self._disks,
            "left-volumes": self._left,
            "profile": self._profile,
            "network": self._network,
            "routes": self._routes,
            "control-host": self._control_host,
            "types": self._types,
            "dry-run": self._dry_run,
            "quotas": self._quotas,
            "spot-scores": self._scores,
            "node": self._node,
        }

    async def _template(self) -> Findings:
        return aws_launch.template(await launch.template(self._clients, self._place), self._place)

    async def _image(self) -> Findings:
        given, found = await self._image_facts(await launch.template(self._clients, self._place))
        return aws_launch.image(given, found, self._place)

    async def _image_facts(self, template: TemplateFacts) -> tuple[str, ImageFacts | None]:
        """The image's name, and what it is; None when there is no such."""
        given = self._place.image or template.image
        if not given.startswith("ami-"):
            return given, None
        try:
            return given, await launch.image(self._clients, given)
        except CloudError as error:
            if not isinstance(error, NotFound) and not code_of(error).startswith("InvalidAMIID"):
                raise
            return given, None

    async def _disks(self) -> Findings:
        template = await launch.template(self._clients, self._place)
        name, image = await self._image_facts(template)
        if image is None:
            return [skipped(f"there is no image {name} to look at", subject=self._place.region)]
        volumes = disks.volumes(image.devices, template.devices)
        findings = list(aws_disks.kept(volumes, self._place))
        try:
            keys = await disks.keys(self._clients, volumes)
        except CloudError as error:
            return [*findings, aws_disks.unknown_keys(self._place.region, error_text(error))]
        for key in keys:
            findings += await self._key(key)
        return findings

    async def _key(self, name: str) -> Findings:
        """Those who start machines, and whether they may use a key."""
        who = await account.identity(self._clients)
        partition, region = who.arn.split(":")[1], self._place.region
        needed = {"the daemon": account.principal_of(who.arn)}
        if self._pool.spot_wanted:
            needed[f"the role {SPOT_ROLE}"] = spot_role_arn(who.account, partition)
        try:
            key = await disks.key(self._clients, name)
        except CloudError as error:
            return [aws_disks.ungranted(name, needed.values(), region, error_text(error))]
        daemon = needed["the daemon"]
        by_iam = {daemon} if key.own and await self._may_grant(daemon, key.arn) else ()
        return aws_disks.grants(key, needed, by_iam, region)

    async def _may_grant(self, principal: str, key: str) -> bool:
        """Whether IAM permits the daemon what its policy has for a key; False where nobody can say."""
        statements = iam.encrypting([self._place.region], key)
        try:
            return not await roles.refused(self._clients, principal, statements)
        except CloudError:
            return False

    async def _left(self) -> Findings:
        found = await disks.left_behind(self._clients, self._config.pool_name)
        return aws_disks.left(found, self._place.region)

    async def _profile(self) -> Findings:
        template = await launch.template(self._clients, self._place)
        table = self._config.pool.cloud.aws
        name = template.profile.rpartition("/")[2]
        if not name:
            return aws_roles.no_role(template.key_pair)
        found = await roles.profile(self._clients, name)
        findings = list(aws_roles.profile(found, name, table.node_role, template.key_pair))
        statements = iam.node_policy(table.engine_secrets, table.weights, self._place.region)["Statement"]
        if found is not None and found.role and statements:
            findings.append(await self._may_read(found.role, statements))
        return findings

    async def _may_read(self, role: str, statements: Sequence[Mapping[str, Any]]) -> Finding:
        try:
            return aws_roles.secrets(await roles.refused(self._clients, role, statements), role, self._file)
        except CloudError as error:
            return aws_roles.unknown(error_text(error))

    async def _network(self) -> Findings:
        place = self._place
        template = await launch.template(self._clients, place)
        subnets = await launch.subnets(self._clients, sorted(place.subnets.values()))
        groups = await launch.security_groups(self._clients, template.groups) if template.groups else ()
        most, exporter = self._pool.most_units, self._config.pool.gpu.dcgm_port
        return aws_launch.network(subnets, groups, template.groups, place, most, exporter)

    async def _routes(self) -> Findings:
        subnets = await launch.subnets(self._clients, sorted(self._place.subnets.values()))
        if not subnets:
            return [skipped("there are no subnets to look at", subject=self._place.region)]
        tables = await routes.tables(self._clients, subnets)
        endpoints = await routes.services(self._clients, sorted({subnet.network for subnet in subnets}))
        return aws_routes.routes(tables, endpoints, self._needs(), self._place.region)

    def _needs(self) -> Needs:
        """What nodes fetch when they start."""
        pool, table = self._config.pool, self._config.pool.cloud.aws
        fetched = {arn.split(":")[2]: "secrets" for arn in table.engine_secrets.values()}
        from_s3 = table.weights.startswith("s3://")
        if from_s3:
            fetched["s3"] = "weights"
        named = not pool.model.startswith("/") and not pool.model.endswith(".gguf")
        hub = pool.engine.kind != "simulated" and not table.weights and named
        stored = stored_weights(pool) if hub or from_s3 else None
        weights = stored * GIB / 1e9 if stored is not None else None
        return Needs(weights=weights, hub=hub, services=fetched)

    async def _control_host(self) -> Findings:
        subnets = await launch.subnets(self._clients, sorted(self._place.subnets.values()))
        networks = frozenset(subnet.network for subnet in subnets)
        return aws_routes.control_host(await own_network(), networks, self._file)

    async def _types(self) -> Findings:
        return aws_launch.types(await launch.sold_in(self._clients, self._place), self._place)

    async def _dry_run(self) -> Findings:
        return aws_dry_launches.launches(await self._tried.all(), self._place.region, self._file)

    async def _quotas(self) -> Findings:
        place = self._place
        findings: list[Finding] = []
        for (market, code), kinds in aws_launch.quota_codes(place.instance_types).items():
            value = await launch.quota(self._clients, code)
            findings += aws_launch.quota(market, code, kinds, value, self._pool, place.region)
        known = ", ".join(place.instance_types)
        return findings or [skipped(f"no quota is known for {known}", subject=place.region)]

    async def _scores(self) -> Findings:
        place = self._place
        if not self._pool.spot_wanted:
            return [skipped("the pool wants no spot nodes", subject=place.region)]
        found = await launch.spot_scores(self._clients, place, self._pool.spot_wanted)
        subnets = await launch.subnets(self._clients, sorted(place.subnets.values()))
        return aws_launch.scores(found, subnets, place)

    async def _node(self) -> Findings:
        """How far this host comes at the engine of a node that runs: the one that runs longest."""
        config, region = self._config, self._place.region
        instances = AwsInstances([(self._clients, self._place)], clock=self._clock)
        engine = engine_with_key(config, self._clock)
        try:
            listed = await instances.list(config.pool_name, region)
            running = [m for m in listed if m.state is InstanceState.RUNNING and m.address]
            if not running:
                return [aws_routes.no_node(self._file, region)]
            machine = min(running, key=lambda m: m.launched_at)
            steps = (reach.Step.PORT, reach.Step.HEALTHY, reach.Step.MODEL)
            trouble = await reach.first_trouble(engine, machine.address, steps)
        finally:
            await instances.close()
            await engine.close()
        timeout = config.wanted.health.boot_timeout
        return [reach.node(machine, trouble, now=self._clock.now(), boot_timeout=timeout)]
