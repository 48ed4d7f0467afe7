"""An upstream of nginx as a load balancer: a file that it includes, and a reload for every change.

nginx checks no targets by itself and counts no requests of one, so a target in the set counts as healthy, and
whether a drained node has requests left is asked of its engine. A reload starts new workers; the old ones
finish what they have. A status location, which the running configuration answers, says which set is in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloud.balancers import nginx_file as files
from cloud.balancers.exchange import Exchange, generation_in, read_as_ours, text_of
from cloud.balancers.ledger import Ledger
from cloud.balancers.nginx_file import EMPTY, Upstream
from cloud.errors import Denied, Uncertain
from cloud.ports import BalancerView, Capabilities, Clock
from cloud.threads import WorkerThreads
from policies.model import Target, TargetPhase, TargetSpec, TargetState
from policies.value import replace

PROPAGATION: Final = 1.5
"""Seconds until no old worker takes a request any more: `keepalive_min_timeout` of the example, and some."""

_IN_FORCE_WITHIN: Final = 5.0  # s
_SURE: Final = 3  # answers in a row by the new configuration
_POLL: Final = 0.02  # s
_OK, _BROKEN = 200, 500
_STATUS_MOST: Final = 65_536  # bytes of the status location's answer


class NginxUpstream:
    """One upstream of one nginx on this host.

    `url`: its status location. `file`: what it includes. `upstream`: the name. `reload`: the command that has
    nginx read its configuration again. `ledger`: the set that was acknowledged last, which is in force while
    the file holds another. A drain waits for nobody: a new target gets requests at once.
    """

    capabilities = Capabilities(
        drains=True,
        counts_in_flight=False,
        propagation=PROPAGATION,
        in_path=True,
        weights=True,
        checks=False,
    )

    def __init__(
        self,
        *,
        url: str,
        file: Path,
        upstream: str,
        reload: Sequence[str],
        ledger: Ledger,
        clock: Clock,
        name: str = "nginx",
        timeout: float = 2.0,
    ) -> None:
        self.name = name
        self._url, self._file, self._upstream, self._reload = url, file, upstream, tuple(reload)
        self._ledger, self._clock = ledger, clock
        # A connection that is kept would stay with an old worker.
        self._exchange = Exchange(f"nginx at {url}", url, timeout=timeout, warm=False)
        self._thread = WorkerThreads(f"nginx-{name}", 1)
        self._order = asyncio.Lock()

    async def observe(self) -> BalancerView:
        """What the running nginx has. Raises Uncertain when it does not answer.

        Where neither its file nor the ledger holds that, as after both were damaged, it is shown as empty,
        and is given the whole set again.
        """
        word, worker = await self._status()
        known = (await self._read(), await self._acknowledged())
        held = next((each for each in known if each.word == word), EMPTY)
        return BalancerView(
            incarnation=await asyncio.to_thread(_master, worker),
            generation=_generation(self._exchange.peer, word),
            targets=tuple(_target(spec) for spec in held.targets),
        )

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Write the file and reload. Raises Denied for a lower generation or a refused configuration,
        Uncertain."""
        wanted = files.upstream(desired, generation)
        async with self._order:
            held = await self._read()
            newest = max(held.generation, (await self._acknowledged()).generation)
            if generation < newest:
                raise Denied(f"generation {generation} is older than {newest}, already applied")
            if held.targets == wanted.targets:
                with contextlib.suppress(Uncertain):
                    if (await self._status())[0] == held.word:
                        return
            await self._put(wanted)

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Take these targets out of the file and reload. See `LoadBalancer.detach`."""
        going = {spec.id for spec in leaving}
        async with self._order:
            held = await self._read()
            if generation < held.generation:
                raise Denied(f"generation {held.generation} was applied, newer than {generation}")
            await self._status()  # nothing is promised where nobody answers
            left = [replace(t, phase=TargetPhase.DRAINING) if t.id in going else t for t in held.targets]
            wanted = files.upstream(left, held.generation)
            if wanted.targets != held.targets:
                await self._put(wanted)

    async def close(self) -> None:
        """Nothing is held open. The file stays."""
        self._thread.close()
        self._ledger.close()

    async def _put(self, wanted: Upstream) -> None:
        try:
            await self._thread.run(functools.partial(files.write, self._file, self._upstream, wanted))
        except OSError as error:
            raise Uncertain(f"{self._file} cannot be written: {error.strerror or error}") from None
        await self._run_reload()
        until, sure = self._clock.steady() + _IN_FORCE_WITHIN, 0
        while sure < _SURE:
            word, _ = await self._status()
            sure = sure + 1 if word == wanted.word else 0
            if not sure:
                if self._clock.steady() >= until:
                    raise Uncertain(
                        f"nginx did not take generation {wanted.generation} within {_IN_FORCE_WITHIN:g} s: "
                        "its error log says why; `nginx -t` checks its configuration"
                    )
                await self._clock.sleep(_POLL)
        await self._ledger.write(wanted.targets, wanted.generation)

    async def _run_reload(self) -> None:
        """Raises Denied with the words of the command, Uncertain."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._reload,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise Denied(f"{self._reload[0]} cannot be run: {error.strerror or error}") from None
        try:
            async with asyncio.timeout(_IN_FORCE_WITHIN):
                said, _ = await process.communicate()
        except TimeoutError:
            raise Uncertain(f"`{' '.join(self._reload)}` did not end in {_IN_FORCE_WITHIN:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # sudo's belongs to root
                    process.kill()
        if process.returncode:
            words = " ".join(said.decode(errors="replace").split())[-400:]
            if "invalid PID" in words or "No such process" in words or "/nginx.pid" in words:
                raise Uncertain(f"nginx does not run: {words}")
            raise Denied(f"`{' '.join(self._reload)}` failed: {words}")

    async def _status(self) -> tuple[str, str]:
        """The word of the set in force and the number of a worker. Raises Uncertain, Denied."""
        status, data = await self._exchange.ask("GET", most=_STATUS_MOST)
        words = text_of(data).split()
        if status >= _BROKEN:
            raise Uncertain(f"{self._exchange.peer} answered {status}")
        if status != _OK or len(words) != 2:
            raise Denied(f"{self._url} is not the status location of `orchestrator balancer example`")
        return words[0], words[1]

    async def _acknowledged(self) -> Upstream:
        held = await self._ledger.read()
        return Upstream(held.generation, held.targets)

    async def _read(self) -> Upstream:
        return await self._thread.run(functools.partial(files.read, self._file))


def _target(spec: TargetSpec) -> Target:
    active = spec.phase is TargetPhase.ACTIVE
    return Target(
        id=spec.id, address=spec.address, state=TargetState.HEALTHY if active else TargetState.DRAINING
    )


def _generation(peer: str, word: str) -> int:
    """Raises Uncertain."""
    with read_as_ours(peer):
        return generation_in(word.partition(".")[0])


def _master(worker: str) -> str:
    """The parent of a worker with the tick at which it began; empty where this host hides it."""
    try:
        parent = Path(f"/proc/{int(worker)}/stat").read_text().rpartition(") ")[2].split()[1]
        return f"{parent}.{Path(f'/proc/{parent}/stat').read_text().rpartition(') ')[2].split()[19]}"
    except (OSError, ValueError, IndexError):
        return ""
