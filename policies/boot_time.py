"""How long a boot takes, as a sum that can be done before the first machine is paid for.

What it decides: nothing at run time; it tells `validate` whether `health.boot_timeout` leaves time for the
weights. A boot is the machine's own start, the weights, and the engine's start; only the weights differ much
from pool to pool:

    boot = 180 s + size of the weights / slowest link between where they are and the GPU

Links in MiB/s: the network to where they are published, and the disk that they are kept on or written to.
Why: a sum that does not close means machines that are given up, launched again, and paid for.
Never: an exact time. The constants are stated here and documented; `orchestrator history` has what it took.

Example:
    >>> boot = Boot(weights=130.0, links=(HUGGING_FACE, Link("a gp3 volume", 125.0)))
    >>> print(boot.formula)
    130 GiB of weights / 125 MiB/s (a gp3 volume) + 180 s for machine and engine = 1245 s
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.value import value

REST = 180.0
"""Seconds that do not depend on the weights: about 60 until the engine's process begins, and 120 for its
imports, compilation and CUDA graphs (`vllm serve` on an H100 with warm caches needs 43, cold 65, without the
machine; larger models and cold caches several times that)."""


@dataclass(frozen=True, slots=True)
class Link:
    """Something that weights come through: its name in a sentence, and MiB/s."""

    name: str
    rate: float


HUGGING_FACE = Link("the download from Hugging Face, by assumption", 250.0)
"""A file comes at tens to hundreds of MiB/s, several at once; anonymous and throttled ones are slower."""

S3 = Link("the download from S3, by assumption", 500.0)
"""A connection to S3 in the same region gives 85 to 90 MiB/s by AWS's guidelines; several run at once."""

LOCAL_NVME = Link("the machine's own NVMe disks, by assumption", 2000.0)


@value
class Boot:
    """A boot: GiB of weights as they are stored, and the links that all of them come through."""

    weights: float
    links: tuple[Link, ...]

    @property
    def slowest(self) -> Link:
        """The link that decides."""
        return min(self.links, key=lambda link: link.rate)

    @property
    def seconds(self) -> float:
        """From the launch to ready."""
        return self.weights * 1024.0 / self.slowest.rate + REST

    @property
    def formula(self) -> str:
        """The sum in words."""
        link = self.slowest
        return (
            f"{self.weights:.0f} GiB of weights / {link.rate:.0f} MiB/s ({link.name}) + {REST:.0f} s for "
            f"machine and engine = {self.seconds:.0f} s"
        )
