"""The kinds of clouds that a pool's machines can come from: one row each, as data.

What a kind does is in one package under `cloud/`; which adapters, checks and looks belong to it is in the
tables of the same keys in `orchestrator.wiring.clouds`, `orchestrator.config.checks.clouds`,
`orchestrator.doctor.clouds` and `orchestrator.doctor.field_kinds`. CONTRIBUTING says how a kind is added.
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
class Preemption:
    """How a cloud is asked to take a spot machine as it takes one by itself: see `doctor --field-test`."""

    by: str  # the call, as the cloud names it
    right: str  # what the caller needs for it, and whether the daemon's rights have it
    within: float  # s from the call until the machine is gone, at most
    alone: tuple[str, ...] = ()  # sources of notices, by the beginning of their names, that one reader drains


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudKind:
    """One kind of cloud. Its table of the configuration has its name: [pool.NAME.cloud.KIND]."""

    title: str  # its name for people
    machines: str  # what its machines are called
    bills: str  # who bills for the machines; empty where they cost nothing
    here: bool  # nodes are processes of this machine, which sees their programs and files
    traits: ProviderTraits
    proved: Proved
    preemption: Preemption | None  # None where a preemption cannot be asked for


KINDS: Final[Mapping[CloudName, CloudKind]] = MappingProxyType(
    {
        "local": CloudKind(
            title="local cloud",
            machines="processes on this machine",
            bills="",
            here=True,
            traits=ProviderTraits(stops=True, notice=120.0, lists_at_once=True),
            proved=Proved(proof=Proof.PROGRAM, by="its own processes"),
            preemption=None,
        ),
        "aws": CloudKind(
            title="AWS",
            machines="instances of EC2",
            bills="AWS",
            here=False,
            traits=ProviderTraits(stops=True, notice=120.0, lists_at_once=True, fills_gpus=True),
            proved=Proved(proof=Proof.STAND_IN, by="boto3, which the adapters use, on moto"),
            preemption=Preemption(
                by="an experiment of FIS with aws:ec2:send-spot-instance-interruptions",
                right="what `orchestrator aws policy FILE --field-test` prints, and the role of FIS",
                within=360.0,
                alone=("aws-queue",),
            ),
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
            preemption=Preemption(
                by="instances.simulateMaintenanceEvent",
                right="compute.instances.simulateMaintenanceEvent, which roles/compute.instanceAdmin.v1 has",
                within=360.0,
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
            preemption=Preemption(
                by="virtualMachines/simulateEviction",
                right="Microsoft.Compute/virtualMachines/simulateEviction/action, which the daemon lacks",
                within=2400.0,  # Azure takes the machine within half an hour
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
            preemption=None,  # SkyPilot has no call for it, whatever the cloud behind it has
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
