"""What the tables of all kinds of clouds say of machines, each in its own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloud.ports import ProviderTraits
from orchestrator.config.types import Section


class MachinesTable(Section):
    """The table of one kind of cloud, for those who do not know the kind. By itself it names nothing."""

    def kinds(self) -> Sequence[str]:
        """Instance types that nodes may have; empty where the file names none."""
        return ()

    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """On-demand prices that the file states, in US dollars per hour, by region and instance type; every
        region that may be used is there."""
        return {}

    def zones(self) -> int:
        """How many zones may be used; 0 where that is not known from the file."""
        return 0

    def traits(self, usual: ProviderTraits) -> ProviderTraits:
        """What the provider can do as it is configured here; `usual` is what its kind can."""
        return usual

    def sources(self, notice: float) -> Mapping[str, float]:  # noqa: ARG002 - for others
        """What each source of notices leaves of one of so many seconds at worst; agents of nodes apart."""
        return {}

    def weights_aside(self) -> bool:
        """Whether nodes find the weights elsewhere than under the model's name."""
        return False
