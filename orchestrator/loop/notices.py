"""Brings the notices of one source into the inbox."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from cloud.errors import CloudError
from cloud.logger import structlog
from cloud.ports import Clock, Notices
from orchestrator.loop.inbox import Inbox
from policies.events import NoticeSeen

log = structlog.get_logger("loop")

_PAUSE: Final = 1.0


async def hear(source: Notices, inbox: Inbox, clock: Clock) -> None:
    """Hear a source for ever; acknowledge each notice once it is on disk, and none after this has ended."""
    acknowledging: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                async for notice in source.stream():
                    ticket = inbox.put(NoticeSeen(at=clock.now(), notice=notice))
                    task = asyncio.create_task(_acknowledge(source, inbox, ticket, notice))
                    acknowledging.add(task)
                    task.add_done_callback(acknowledging.discard)
            except CloudError as error:
                log.error("notice_source.failed", source=source.name, error=str(error))
            await clock.sleep(_PAUSE)
    finally:
        unfinished = [*acknowledging]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def _acknowledge(source: Notices, inbox: Inbox, ticket: int, notice: Any) -> None:
    await inbox.written(ticket)
    try:
        await source.acknowledge(notice)
    except CloudError as error:
        log.warning("notice.acknowledge_failed", source=source.name, notice=notice.id, error=str(error))
