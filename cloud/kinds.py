"""The kinds of clouds that a pool's machines can come from: one row each, as data.

What a kind does is in one package under `cloud/`; which adapters, checks and looks belong to it is in the
tables of the same keys in `orchestrator.wiring.clouds`, `orchestrator.config.checks.clouds` and
`orchestrator.doctor.clouds`. CONTRIBUTING says how a kind is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from cloud.ports import ProviderTraits
from cloud.proof import Proof, Proved

CloudName = Literal["local", "aws", "gcp", "azure", "skypilot"]
"""The value of `cloud.kind`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudKind:
    """One kind of cloud. Its table of the configuration has its name: [pool.NAME.cloud.KIND]."""

    title: str  # its name for people
    machines: str  # what its machines are called
    bills: str  # who bills for the machines; empty where they cost nothing
    here: bool  # nodes are processes of this machine, which sees their programs and files
    traits: ProviderTraits
    proved: Proved


KINDS: Final[Mapping[CloudName, CloudKind]] = MappingProxyType(
    {
        "local": CloudKind(
            title="local cloud",
            machines="processes on this machine",
            bills="",
            here=True,
            traits=ProviderTraits(stops=True, notice=120.0, lists_at_once=True),
            proved=Proved(proof=Proof.PROGRAM, by="its own processes"),
        ),
        "aws": CloudKind(
            title="AWS",
            machines="instances of EC2",
            bills="AWS",
            here=False,
            traits=ProviderTraits(stops=True, notice=120.0, lists_at_once=True, fills_gpus=True),
            proved=Proved(proof=Proof.STAND_IN, by="boto3, which the adapters use, on moto"),
        ),
        "gcp": CloudKind(
            title="Google Cloud",
            machines="machines of Compute Engine",
            bills="Google Cloud",
            here=False,
            traits=ProviderTraits(stops=True, notice=120.0, lists_at_once=True, fills_gpus=True),
            proved=Proved(
                proof=Proof.STAND_IN, by="a stand-in of ours that google-cloud-compute 1.57 was run against"
            ),
        ),
        "azure": CloudKind(
            title="Azure",
            machines="virtual machines of Azure",
            bills="Azure",
            here=False,
            # "Up to 30 s", say its documents, and "often less than 10", who use it.
            traits=ProviderTraits(stops=True, notice=10.0, lists_at_once=True, fills_gpus=True),
            proved=Proved(
                proof=Proof.STAND_IN,
                by="azure-mgmt-compute, which the adapters use, on a stand-in of ours",
            ),
        ),
        "skypilot": CloudKind(
            title="SkyPilot",
            machines="machines that SkyPilot launches",
            bills="the cloud behind SkyPilot",
            here=False,
            traits=ProviderTraits(stops=True, notice=0.0, lists_at_once=False),
            proved=Proved(
                proof=Proof.STAND_IN,
                by="SkyPilot 0.14.1, which the helper runs, on moto as AWS; of other clouds its source only",
            ),
        ),
    }
)
"""Every kind, in the order in which they are shown."""


def traits_of_all(each: Sequence[ProviderTraits]) -> ProviderTraits:
    """What may be counted on wherever a machine is: what every one of these providers can do."""
    return ProviderTraits(
        stops=all(traits.stops for traits in each),
        notice=min(traits.notice for traits in each),
        lists_at_once=all(traits.lists_at_once for traits in each),
        fills_gpus=all(traits.fills_gpus for traits in each),
    )
