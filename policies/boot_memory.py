"""How boots that failed are remembered, for people.

What it decides: nothing. What failed boots hold back is decided elsewhere (`policies.placement`).
Why: a machine that never became ready is gone when somebody looks; its last words are not.
Never: memory grows with the number of failed boots, or with what a machine writes: the newest BOOTS_KEPT are
kept, each with the end of its console. A boot that is told of twice, as by a daemon that was started again
between, is one: what was read the first time is kept where the second look shows nothing.

Example:
    >>> from policies.events import BootFailed
    >>> from policies.model import Market, Placement
    >>> from policies.records import Memory
    >>> place = Placement("aws", "us-east-1", "us-east-1a", "g6.xlarge", Market.SPOT)
    >>> builder = MemoryBuilder(Memory())
    >>> failed(builder, BootFailed(at=1.0, node="i-1", placement=place, why="not ready", console="no space"))
    >>> failed(builder, BootFailed(at=2.0, node="i-1", placement=place, why="not ready"))
    >>> [(boot.node, boot.console) for boot in builder.done().failed_boots]
    [('i-1', 'no space')]
"""

from __future__ import annotations

from policies.events import BootFailed
from policies.memory_builder import MemoryBuilder
from policies.records import FailedBoot

BOOTS_KEPT = 8
"""Failed boots that are remembered."""

CONSOLE_LINES, CONSOLE_BYTES = 40, 4096
"""What is kept of the console of a failed boot at most."""


def failed(builder: MemoryBuilder, event: BootFailed) -> None:
    """A boot failed."""
    known: tuple[FailedBoot, ...] = builder.get("failed_boots")
    before = next((boot.console for boot in known if boot.node == event.node), "")
    boot = FailedBoot(
        at=event.at,
        node=event.node,
        placement=event.placement,
        why=event.why,
        console=event.console or before,
    )
    others = tuple(other for other in known if other.node != event.node)
    builder.set("failed_boots", (*others, boot)[-BOOTS_KEPT:])
