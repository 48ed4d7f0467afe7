"""The clients' keys in a running gateway: whose key a request has, by a file that may change at any time.

The file is looked at several times a second, by a thread: a disk that hangs holds up no request. What changed
is read once it has been the same for two looks, so that half of a file that is being written counts for
nothing; one that does not come to rest is read at the third look all the same. A file that cannot be taken
changes nothing: the keys that were read last hold, and it is said why. Until one was read, nobody is let in.

Every request is asked for its key anew, on kept connections too. What it had begun goes on to its end.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

from multidict import MultiMapping

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.gateway.accounts.key_format import KeyFileError, content, digest, read_keys
from orchestrator.gateway.dialects import Unfit
from policies.keys import ClientKey, KeyState

log = structlog.get_logger("gateway")

_LONGEST_LOOK: Final = 0.3
"""Seconds between two looks at most: three of them are needed within a second."""

_RESTLESS: Final = 2
"""Looks in a row that find another file each, after which it is read as it is."""

_PATIENCE: Final = 3.0
"""Seconds after which a look counts as failed."""


UNREAD_CODE: Final = "keys_unread"
UNREAD: Final = (
    "this gateway could not read the keys of its clients yet and refuses everybody until it can; "
    "its operator finds the reason in its log"
)
_HOW: Final = "send `Authorization: Bearer KEY` or `x-api-key: KEY`"

Stamp = tuple[int, ...]
"""Equal for as long as a file was neither replaced nor changed."""


class Refused(StrEnum):
    """Why a request is refused for its key. The values are metric labels."""

    MISSING = "missing"  # it has none
    SEVERAL = "several"  # it has two that differ
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    MODEL = "model"  # it may not ask for this model
    UNREAD = "unread"  # no file could be read yet


class ClientKeys:
    """Tells clients by their keys. `path` is the file, None where no keys are asked for.

    `fault` says why the file is not taken, empty while nothing is wrong with it; `refused` counts requests.
    """

    def __init__(self, path: Path | None, clock: Clock, *, interval: float = _LONGEST_LOOK) -> None:
        self.path = path
        self.fault = ""
        self.read_at: float | None = None
        self.keys: Mapping[str, ClientKey] = {}
        self.refused: Counter[Refused] = Counter()
        self._by_digest: dict[str, ClientKey] = {}
        self._clock = clock
        self._interval = min(interval, _LONGEST_LOOK)
        self._threads = WorkerThreads("keys", 1)
        self._seen: Stamp | None = None  # at the last look
        self._taken: Stamp | None = None  # of the content that was judged last
        self._restless = 0  # looks in a row that found another file

    @property
    def asked_for(self) -> bool:
        """Whether clients need keys."""
        return self.path is not None

    @property
    def unread(self) -> bool:
        """Whether nobody can be let in, since no file of keys was read yet."""
        return self.asked_for and self.read_at is None

    async def start(self) -> None:
        """Read the file as it is."""
        await self.look(settled=False)

    async def run(self) -> None:
        """Follow the file for ever."""
        while self.path is not None:
            await self._clock.sleep(self._interval)
            try:
                await self.look()
            except Exception:  # a revoked key must not go on because of a fault here
                log.exception("keys_file.check_failed", file=str(self.path))

    def close(self) -> None:
        """Let go of the thread."""
        self._threads.close()

    def count(self) -> Mapping[KeyState, int]:
        """Keys by state."""
        now = self._clock.now()
        counts = Counter(key.state(now) for key in self.keys.values())
        return {state: counts[state] for state in KeyState}

    def describe(self) -> dict[str, Any] | None:
        """What GET /v1/state says of the file; None where no keys are asked for."""
        if self.path is None:
            return None
        by_state = {state.value: count for state, count in self.count().items()}
        return {"file": str(self.path), "fault": self.fault, "read_at": self.read_at, **by_state}

    def identify(self, headers: MultiMapping[str]) -> ClientKey | None:
        """Whose key a request has; None where no keys are asked for. Raises Unfit: 401, or 503 while there
        are none to compare with.
        """
        if self.path is None:
            return None
        if self.read_at is None:
            raise self._refuse(Refused.UNREAD, 503, UNREAD_CODE, UNREAD)
        shown = set(_shown(headers))
        if not shown:
            raise self._invalid(Refused.MISSING, f"the request has no key; {_HOW}")
        if len(shown) > 1:
            raise self._invalid(Refused.SEVERAL, f"the request has several keys that differ; {_HOW}")
        key = self._by_digest.get(digest(shown.pop()))
        if key is None:
            raise self._invalid(Refused.UNKNOWN, "the key of this request is not known here")
        match key.state(self._clock.now()):
            case KeyState.REVOKED:
                raise self._invalid(Refused.REVOKED, f"the key {key.name} was revoked")
            case KeyState.EXPIRED:
                raise self._invalid(Refused.EXPIRED, f"the key {key.name} has expired")
            case KeyState.VALID:
                return key

    def permit(self, client: ClientKey | None, model: str) -> None:
        """Let a client ask for a model, empty for something that names none. Raises Unfit: 403."""
        if client is None or client.may_ask(model):
            return
        what = f"for the model {_cut(model)!r}" if model else "for something that names no model"
        may = f"it may ask for {', '.join(client.models)}" if client.models else "it may ask for none"
        text = f"the key {client.name} may not ask {what}; {may}"
        raise self._refuse(Refused.MODEL, 403, "model_not_allowed", text, "model" if model else "")

    async def look(self, *, settled: bool = True) -> None:
        """Look at the file, and take it if it is another; once it is `settled` where that is wanted."""
        if self.path is None:
            return
        settled = settled and self._restless < _RESTLESS
        try:
            async with asyncio.timeout(_PATIENCE):
                work = partial(_read, self.path, self._seen, self._taken, settled=settled)
                found = await self._threads.run(work)
        except TimeoutError:
            found = _Found(fault=f"does not answer within {_PATIENCE:g} s")
        self._seen = found.stamp
        self._restless = 0 if found.judged or found.stamp == self._taken else self._restless + 1
        if not found.judged:
            return
        self._taken = found.stamp if settled else None
        if found.keys is not None:
            self._take(found.keys)
        if found.fault and found.fault != self.fault:
            log.error("keys_file.refused", file=str(self.path), reason=found.fault, keys=len(self.keys))
        self.fault = found.fault

    def _invalid(self, why: Refused, text: str) -> Unfit:
        return self._refuse(why, 401, "invalid_api_key", text)

    def _refuse(self, why: Refused, status: int, code: str, text: str, param: str = "") -> Unfit:
        self.refused[why] += 1
        return Unfit(status, code, text, param)

    def _take(self, keys: Mapping[str, ClientKey]) -> None:
        first, self.read_at = self.read_at is None, self._clock.now()
        if first or keys != self.keys:
            self.keys, self._by_digest = keys, {key.sha256: key for key in keys.values()}
            log.info("keys_file.loaded", file=str(self.path), keys=len(keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a look found. `judged`: the file was read, or cannot be; `fault` is why it cannot be taken."""

    stamp: Stamp | None = None
    judged: bool = True
    keys: Mapping[str, ClientKey] | None = None
    fault: str = ""


def _read(path: Path, seen: Stamp | None, taken: Stamp | None, *, settled: bool) -> _Found:
    """One look, which may block. The file is read where it is not the one that was `taken`, and where it must
    be `settled`, only as it was `seen` before.
    """
    try:
        stamp = _stamp(os.stat(path))
        if stamp == taken or (settled and stamp != seen):
            return _Found(stamp=stamp, judged=False)
        return _Found(stamp=stamp, keys=read_keys(content(path)))
    except KeyFileError as error:
        return _Found(stamp=stamp, fault=str(error))
    except FileNotFoundError:
        return _Found(fault="is not there")
    except OSError as error:
        return _Found(fault=f"cannot be read: {error.strerror or error}")


def _stamp(status: os.stat_result) -> Stamp:
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode
    )  # fmt: skip


def _shown(headers: MultiMapping[str]) -> Iterable[str]:
    """The keys in the headers of a request, without empty ones."""
    for value in headers.getall("Authorization", ()):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer" and (key := key.strip()):
            yield key
    for value in headers.getall("X-Api-Key", ()):
        if key := value.strip():
            yield key


def _cut(model: str) -> str:
    return model if len(model) <= _LONGEST_NAME else f"{model[:_LONGEST_NAME]}..."


_LONGEST_NAME: Final = 100
