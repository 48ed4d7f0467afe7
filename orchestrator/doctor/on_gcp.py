"""The checks of a pool on Google Cloud: who the daemon is, what is sold, what it costs, what is granted."""

from __future__ import annotations

import asyncio
from typing import Final

from cloud.errors import CloudError
from cloud.gcp.prices import MachineType, machine_type
from cloud.ports import Clock
from orchestrator.config.load import Config
from orchestrator.doctor.findings import Check, Finding, Findings, fail, ok, skipped, warn
from orchestrator.wiring.gcp import client_of, prices_of_gcp, tokens_of
from policies.model import Market

_PATIENCE: Final = 20.0  # s for the catalogue: a person waits, not a turn of the loop
_ROLE: Final = "give the daemon's service account roles/compute.instanceAdmin.v1 in the project"


class GcpDoctor:
    """What can be found out of one pool by asking Google. Nothing is changed."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config, self._table = config, config.pool.cloud.gcp
        self._tokens = tokens_of(self._table)
        self._client = client_of(config, self._tokens)
        self._prices = prices_of_gcp(config, clock, _PATIENCE)

    def checks(self) -> list[Check]:
        """Every check."""
        needs = "gcp/identity"
        return [
            Check(group="gcp", name="identity", look=self._identity),
            Check(group="gcp", name="zones", look=self._zones, needs=needs),
            Check(group="gcp", name="prices", look=self._sold, needs=needs),
            Check(group="gcp", name="quotas", look=self._quotas, needs=needs),
        ]

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()
        await self._prices.close()
        self._tokens.close()

    async def _identity(self) -> Findings:
        """Whether Google takes the daemon's credentials, and lists machines for them in every zone."""
        found: list[Finding] = []
        for zone in self._all_zones():
            try:
                await self._client.read(f"zones/{zone}/instances", maxResults="1")
            except CloudError as error:
                found.append(fail(str(error), _ROLE, zone))
        return found or [ok(f"machines of project {self._table.project} can be listed in every zone")]

    async def _zones(self) -> Findings:
        """Which machine types each zone has."""
        found: list[Finding] = []
        for zone in self._all_zones():
            there = await asyncio.gather(*(self._type(zone, kind) for kind in self._table.instance_types))
            known = [kind.name for kind in there if kind is not None]
            lacks = [kind for kind in self._table.instance_types if kind not in known]
            if lacks:
                told = fail if not known else warn
                text = f"has no {', '.join(lacks)}"
                found.append(told(text, "leave the zone out, or choose another machine type", zone))
            else:
                found.append(ok(f"has {', '.join(known)}", zone))
        return found

    async def _sold(self) -> Findings:
        """What is sold at which price."""
        found: list[Finding] = []
        for part in self._prices.parts():
            try:
                sold = await self._prices.list(part)
            except CloudError as error:
                found.append(fail(str(error), _ROLE, part))
                continue
            if sold.problem:
                found.append(warn(sold.problem, "a launch without a price is held back by a spend cap", part))
                continue
            prices = {o.placement.instance_type: o.price for o in sold.offerings if o.price is not None}
            told = ", ".join(f"{kind} ${price:.3f} an hour" for kind, price in sorted(prices.items()))
            nothing = fail("nothing is sold there", "choose other zones", part)
            found.append(ok(told, part) if told else nothing)
        return found

    async def _quotas(self) -> Findings:
        """The quotas of GPUs of each region against the pool. They are counted in GPUs, spot apart."""
        wanted, found = self._config.wanted, list[Finding]()
        most = {Market.SPOT: wanted.spot_wanted, Market.ON_DEMAND: wanted.replicas + wanted.standby.hot}
        for region, place in self._table.regions.items():
            answer = await self._client.read(f"regions/{region}")
            limits = {str(q.get("metric")): float(q.get("limit") or 0) for q in answer.get("quotas") or ()}
            for zone in place.zones[:1]:
                for name in self._table.instance_types:
                    kind = await self._type(zone, name)
                    found += [] if kind is None else _granted(kind, limits, most, region)
        return found or [skipped("no machine type of the pool has GPUs whose quota is known")]

    async def _type(self, zone: str, kind: str) -> MachineType | None:
        try:
            return machine_type(await self._client.read(f"zones/{zone}/machineTypes/{kind}"))
        except CloudError:
            return None

    def _all_zones(self) -> list[str]:
        return [zone for region in self._table.regions.values() for zone in region.zones]


def _granted(
    kind: MachineType, limits: dict[str, float], most: dict[Market, int], region: str
) -> list[Finding]:
    """Each quota of GPUs that machines of this type count against."""
    found = []
    for gpu, count in kind.gpus.items():
        base = gpu.removeprefix("nvidia-").removeprefix("tesla-").upper().replace("-", "_")
        for market, nodes in most.items():
            metric = f"{'PREEMPTIBLE_' if market is Market.SPOT else ''}NVIDIA_{base}_GPUS"
            if metric not in limits:
                continue
            room, subject = int(limits[metric] // count), f"{kind.name} {market} in {region}"
            text = f"{metric} is {limits[metric]:g}: room for {room} of {nodes} nodes"
            advice = f"ask for {count * nodes} at https://console.cloud.google.com/iam-admin/quotas"
            found.append(ok(text, subject) if room >= nodes else warn(text, advice, subject))
    return found
