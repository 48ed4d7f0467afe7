"""What a machine that never became ready wrote last, asked for once, before it is gone for good."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from cloud.errors import CloudError
from cloud.logger import structlog
from cloud.ports import Clock, Instances
from orchestrator.metrics.calls import counted
from policies.boot_memory import CONSOLE_BYTES, CONSOLE_LINES
from policies.events import BootFailed, Event
from policies.model import Placement
from policies.plain_text import last_lines, one_line

log = structlog.get_logger("loop")

PATIENCE = 10.0
"""Seconds that a console may take: the end of a machine that is paid for waits no longer for its words."""

_LONGEST_WHY = 500
_HEARD_KEPT = 1024


class LastWords:
    """Reads the console of failed boots, each once, and reports them by `emit`, which must not block.

    A console that cannot be read is logged and delays nothing: the failed boot is reported without it.
    What a machine wrote is not trusted, whatever the adapter made of it.
    """

    def __init__(
        self,
        *,
        pool: str,
        clock: Clock,
        instances: Instances,
        emit: Callable[[Event], object],
        node_says: Callable[[str], str],
    ) -> None:
        """`node_says` gives what a node itself said of its start, in a few words, empty for nothing."""
        self._pool, self._clock, self._instances, self._emit = pool, clock, instances, emit
        self._node_says = node_says
        self._heard: OrderedDict[str, None] = OrderedDict()

    async def hear(self, node: str, place: Placement, why: str) -> None:
        """Tell of a boot that failed, with the end of its machine's console. At most PATIENCE seconds."""
        if node in self._heard:
            return
        self._heard[node] = None
        if len(self._heard) > _HEARD_KEPT:
            self._heard.popitem(last=False)
        said = self._node_says(node)
        wrote = await self._console(node)
        self._emit(
            BootFailed(
                at=self._clock.now(),
                node=node,
                placement=place,
                why=one_line(f"{why}; {said}" if said else why, _LONGEST_WHY),
                console=last_lines(wrote, lines=CONSOLE_LINES, most=CONSOLE_BYTES),
            )
        )

    async def _console(self, node: str) -> str:
        try:
            with counted(self._pool, "instances", "console"):
                async with asyncio.timeout(PATIENCE):
                    return await self._instances.console(node)
        except TimeoutError:
            log.warning("console.read_failed", node=node, error=f"no answer within {PATIENCE:.0f} s")
        except CloudError as error:
            log.warning("console.read_failed", node=node, error=str(error))
        except Exception:  # a fault of the adapter must not keep a machine alive
            log.exception("console.read_crashed", node=node)
        return ""
