"""How well an adapter is proved: against the thing itself, or only by what is written of it.

Every kind of cloud, balancer and engine has such a level as data, which docs/reference/proof.md and
`orchestrator doctor` show. Of a cloud or a balancer, *source only* has to be accepted in the configuration,
since machines and requests depend on it: see `Proved.needs_consent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Proof(StrEnum):
    """The best thing that an adapter was run against, from the strongest to the weakest."""

    FIELD = "field"
    PROGRAM = "program"
    STAND_IN = "stand-in"
    SOURCE = "source"


MEANING: Final[Mapping[Proof, str]] = MappingProxyType(
    {
        Proof.FIELD: "it ran against the real service, on somebody's account",
        Proof.PROGRAM: "the real program ran here, in the tests",
        Proof.STAND_IN: "it ran against a stand-in, which the vendor's own SDK was run against too",
        Proof.SOURCE: "it follows sources and documents, and ran against nothing but tests of ours",
    }
)
"""What each level says, as a sentence without its dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """A level with what gave it: programs and versions, or what was read."""

    proof: Proof
    by: str

    @property
    def needs_consent(self) -> bool:
        """Whether a pool that uses it must say `accept_unproven = true`."""
        return self.proof is Proof.SOURCE
