"""The helper as a child of the daemon: started when it is needed, and again when it ended, at a growing pace.

What was asked of a helper that ends has an unknown outcome: Uncertain. The next look asks again, and the
helper asks the cloud before it changes anything, so nothing happens twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cloud.errors import CloudError, Denied, Misconfigured, Uncertain
from cloud.logger import structlog
from cloud.ports import Clock
from cloud.sharing import Share
from cloud.skypilot import wire

log = structlog.get_logger("skypilot")

ENTRY: Final = Path(__file__).parent / "helper" / "__main__.py"

SECONDS: Final[Mapping[str, float]] = {
    "launch": 240.0,
    "start": 240.0,
    "stop": 120.0,
    "terminate": 120.0,
    "engine": 240.0,
    "look": 60.0,
    "prices": 120.0,
    "forget": 60.0,
    "account": 60.0,
    "info": 60.0,
}
"""How long an answer is waited for. Some clouds answer a launch only once the machine is up."""

_START_SECONDS: Final = 180.0  # SkyPilot's import takes seconds, and much longer beside other work
_SLOWEST: Final = 60.0  # s between two starts of a helper that keeps ending
_LASTED: Final = 300.0  # s after which an end is no sign that the next start will fail as well
_CHUNK: Final = 1 << 16  # bytes that are read at once of what it writes for people
_LONGEST_WORDS: Final = 300  # characters that are kept of a line of it
_USER_ID: Final = re.compile(r"[a-z0-9]{4,16}")
_PASSED: Final = re.compile(
    r"(AWS|AZURE|GOOGLE|CLOUDSDK|GCP|NEBIUS|OCI|RUNPOD|VAST|VERDA|SSL|REQUESTS|CURL)_\w+"
    r"|PATH|LANG|LC_\w+|TZ|(HTTPS?|NO)_PROXY|(https?|no)_proxy|CREDENTIALS_DIRECTORY"
)
"""Variables of the daemon that the helper gets: where to find credentials, and how to reach the clouds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperSettings:
    """How a helper is started. Raises ValueError for a user id that SkyPilot would not take."""

    python: Path  # of an environment with SkyPilot
    home: Path  # its home directory, which nothing else uses
    regions: tuple[str, ...]  # that may be asked for what is the account's own there
    user_id: str  # the part of names on the cloud that says whose they are
    config: Mapping[str, Any]  # SkyPilot's own configuration
    credentials: Mapping[str, Path] = field(
        default_factory=dict
    )  # by path below the home, where it really is
    environment: Mapping[str, str] = field(default_factory=dict)  # beside what it gets anyway
    entry: tuple[str, ...] = ("-I", str(ENTRY))
    most_memory: int = 1 << 30  # bytes above which it is started anew, once it is idle

    def __post_init__(self) -> None:
        if not _USER_ID.fullmatch(self.user_id):
            raise ValueError(f"user id {self.user_id!r}: 4 to 16 of a-z and 0-9")


@dataclass(slots=True)
class HelperState:
    """What is to be seen of a helper from outside, for metrics."""

    up: bool = False
    ends: int = 0  # that nobody asked for
    memory: int = 0  # bytes, as of its last answer


class Helper:
    """One helper, for all pools that use the same settings. `ask` starts it; `close` ends it."""

    def __init__(
        self,
        settings: HelperSettings,
        clock: Clock,
        changed: Callable[[HelperState], None] = lambda _state: None,
    ) -> None:
        """`changed` is called whenever the state is another one."""
        self.state = HelperState()
        self._changed = changed
        self._settings, self._clock = settings, clock
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._serial = 0
        self._failures = 0  # starts in a row that did not last
        self._began = self._not_before = 0.0
        self._said: deque[str] = deque(maxlen=20)
        self._holders = 0
        self.closed = False

    def share(self) -> HelperShare:
        """Somebody's part in the helper, which ends when the last one is given up."""
        return HelperShare(self)

    def hold(self) -> None:
        """One share more."""
        self._holders += 1

    async def ask(self, do: str, **question: Any) -> Any:
        """The answer to a question of `cloud.skypilot.wire`.

        Raises CloudError: the helper's own words, or Uncertain when it ended, hung or could not be started.
        """
        if self.closed:
            raise CloudError("the helper of SkyPilot is closed")
        process = await self._running()
        self._serial += 1
        number = self._serial
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            _stdin(process).write(wire.line({"id": number, "do": do, **question}))
            async with asyncio.timeout(SECONDS[do]):
                return await answer
        except TimeoutError:
            raise Uncertain(f"SkyPilot's helper did not answer {do} within {SECONDS[do]:.0f} s") from None
        except (OSError, RuntimeError) as error:
            raise Uncertain(f"SkyPilot's helper is gone: {error}") from error
        finally:
            self._waiting.pop(number, None)
            if answer.cancelled():
                self._take_back(process, number)
                if do != "info":
                    self._see_whether_it_lives(process)
            self._renew()

    async def close(self) -> None:
        """End the helper. Touches no machine. Idempotent."""
        self.closed = True
        await self._end()

    async def release(self) -> None:
        """One share is given up."""
        self._holders -= 1
        if self._holders <= 0:
            await self.close()

    # -- the process -------------------------------------------------------------------------------

    async def _running(self) -> asyncio.subprocess.Process:
        """The helper, started where there is none. A start goes on when nobody waits for it any more.

        Raises CloudError, Denied, Misconfigured.
        """
        if self._process is not None and self.state.up:
            return self._process
        if self._starting is None or self._starting.done():
            if wait := self.pause():
                raise CloudError(
                    f"SkyPilot's helper ended and is started again in {wait:.0f} s: {self._last_words()}"
                )
            self._starting = asyncio.create_task(self._start(), name="skypilot-start")
            self._starting.add_done_callback(_seen)
        return await asyncio.shield(self._starting)

    async def _start(self) -> asyncio.subprocess.Process:
        self._prepare()
        settings = self._settings
        self._began = self._clock.steady()
        try:
            process = await asyncio.create_subprocess_exec(
                settings.python,
                *settings.entry,
                str(settings.home),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment(settings, os.environ),
                cwd=settings.home,
                limit=wire.LONGEST,
            )
        except OSError as error:
            raise Misconfigured(f"{settings.python} cannot be started: {error.strerror or error}") from error
        self._process = process
        hello: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[wire.HELLO] = hello
        reading = self._reading = asyncio.create_task(self._read(process))
        if self.closed:
            _kill(process)
        try:
            async with asyncio.timeout(_START_SECONDS):
                version = await hello
        except (TimeoutError, CloudError) as error:
            _kill(process)
            await asyncio.wait([reading])
            raise CloudError(f"SkyPilot's helper did not start: {self._last_words() or error}") from None
        finally:
            self._waiting.pop(wire.HELLO, None)
        self.state.up = True
        self._changed(self.state)
        log.info("skypilot.helper_started", version=version, pid=process.pid)
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Take its answers until it ends; whoever waits then is told that nobody knows."""
        words = asyncio.create_task(self._listen(process))
        try:
            while data := await _stdout(process).readline():
                self._take(process, wire.answer(data))
        except ValueError as error:
            self._said.append(f"it wrote what is no answer: {error}")
            log.error("skypilot.answer_refused", error=str(error))
            _kill(process)
        finally:
            code = await _code(process)
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(words, 1.0)
            self._ended(process, code)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines that it writes for people. All of it is read, else the helper would wait."""
        rest = b""
        while process.stderr is not None and (data := await process.stderr.read(_CHUNK)):
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in (*lines, rest) if len(rest) > _LONGEST_WORDS else lines:
                self._keep(line)
            rest = rest if len(rest) <= _LONGEST_WORDS else b""
        self._keep(rest)

    def _keep(self, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").strip():
            self._said.append(text[:_LONGEST_WORDS])

    def _take(self, process: asyncio.subprocess.Process, answer: wire.Answer) -> None:
        if process is not self._process:
            return  # the last words of one that was ended
        self.state.memory = answer.memory
        self._changed(self.state)
        waiting = self._waiting.get(answer.number)
        if waiting is None or waiting.done():
            return  # nobody waits for it any more
        if isinstance(answer.value, CloudError):
            waiting.set_exception(answer.value)
        else:
            waiting.set_result(answer.value)

    def _take_back(self, process: asyncio.subprocess.Process, number: int) -> None:
        """Have a question that nobody waits for not done, where it was not begun: it holds up the others."""
        if process is self._process:
            with contextlib.suppress(OSError, RuntimeError):
                _stdin(process).write(wire.line({"id": number, "do": wire.DROP}))

    def _ended(self, process: asyncio.subprocess.Process, code: int) -> None:
        if process is not self._process:
            return
        self._process, self.state.up = None, False
        self.state.memory = 0
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Uncertain(f"SkyPilot's helper ended with {code} while it was asked"))
        if self.closed:
            return
        lasted = self._clock.steady() - self._began
        self._failures = 1 if lasted >= _LASTED else self._failures + 1
        self._not_before = self._clock.steady() + min(_SLOWEST, 2.0 ** (self._failures - 1) - 1.0)
        self.state.ends += 1
        self._changed(self.state)
        log.error("skypilot.helper_ended", code=code, said=self._last_words())

    def _see_whether_it_lives(self, process: asyncio.subprocess.Process) -> None:
        """Ask one that did not answer for a sign of life, which waits for no cloud; end it without."""

        async def look() -> None:
            try:
                await self.ask("info")
            except CloudError:
                if process is self._process:
                    log.error("skypilot.helper_lost", pid=process.pid)
                    _kill(process)

        if process is self._process and (self._doubt is None or self._doubt.done()):
            self._doubt = asyncio.create_task(look(), name="skypilot-sign-of-life")

    def _renew(self) -> None:
        """End a helper that holds too much memory, once nobody waits for it; the next question starts one."""
        if self.state.memory > self._settings.most_memory and not self._waiting and self._process is not None:
            log.warning("skypilot.helper_renewed", memory=self.state.memory)
            process, self._process, self.state.up = self._process, None, False
            _kill(process)

    async def _end(self) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
        process, reading = self._process, self._reading
        self._process, self._reading, self.state.up = None, None, False
        if process is not None:
            _kill(process)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Uncertain("SkyPilot's helper was ended while it was asked"))
        if under_way := [task for task in (reading, self._starting) if task is not None]:
            await asyncio.wait(under_way)

    @property
    def pid(self) -> int | None:
        """Of the helper; None where none runs."""
        return None if self._process is None else self._process.pid

    def pause(self) -> float:
        """Seconds until a helper that ended may be started again."""
        return max(0.0, self._not_before - self._clock.steady())

    def _last_words(self) -> str:
        return self._said[-1] if self._said else ""

    def _prepare(self) -> None:
        """Its home with SkyPilot's configuration and the credentials. Raises Denied."""
        settings, home = self._settings, self._settings.home
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            home.chmod(0o700)
            (home / ".sky").mkdir(exist_ok=True)
            # JSON is YAML.
            (home / ".sky" / "config.yaml").write_text(json.dumps(settings.config), encoding="utf-8")
            for name, real in settings.credentials.items():
                link = home / name
                link.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    link.unlink()
                link.symlink_to(real)
        except OSError as error:
            raise Denied(f"{home} cannot be used as the helper's home: {error.strerror or error}") from error


class HelperShare(Share):
    """A part in a helper."""

    def __init__(self, helper: Helper) -> None:
        super().__init__(helper)
        self.helper = helper
        helper.hold()

    async def ask(self, do: str, **question: Any) -> Any:
        """See `Helper.ask`."""
        return await self.helper.ask(do, **question)


class HelperApart(HelperShare):
    """A helper for looks beside a daemon, whose own helper has the home: with an empty one, which goes with
    it, and what the catalogue is in the other. It must launch nothing."""

    def __init__(self, settings: HelperSettings, clock: Clock) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="orchestrator-skypilot-")
        home, kept = Path(self._home.name), Path(".sky") / "catalogs"
        with contextlib.suppress(OSError, shutil.Error):  # then it is fetched
            shutil.copytree(settings.home / kept, home / kept)
        super().__init__(Helper(replace(settings, home=home), clock))

    async def close(self) -> None:
        """End it. Idempotent."""
        await super().close()
        self._home.cleanup()


def environment(settings: HelperSettings, ours: Mapping[str, str]) -> dict[str, str]:
    """The helper's environment: of the daemon's, only what says how clouds are reached."""
    real_home = ours.get("HOME", "")
    found = {name: value for name, value in ours.items() if _PASSED.fullmatch(name)}
    for name, file in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        found.setdefault(name, f"{real_home}/.aws/{file}")  # boto3 would look in the helper's home
    if settings.regions:  # SkyPilot asks who it is in no region of its own choice
        found.setdefault("AWS_DEFAULT_REGION", settings.regions[0])
    return {
        **found,
        "HOME": str(settings.home),
        "SKYPILOT_USER_ID": settings.user_id,
        "SKYPILOT_USER": "orchestrator",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "ORCHESTRATOR_SKY_REGIONS": ",".join(settings.regions),
        "MALLOC_ARENA_MAX": "2",  # every thread would have an arena of its own
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **settings.environment,
    }


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _code(process: asyncio.subprocess.Process) -> int:
    """How one ends that says no more; it is ended where it does not. A kill of one that has just ended would
    lose that."""
    try:
        async with asyncio.timeout(1.0):
            return await process.wait()
    except TimeoutError:
        _kill(process)
        return await process.wait()


def _seen(task: asyncio.Task[Any]) -> None:
    """Whoever waited for it has its error; nobody else misses it."""
    if not task.cancelled():
        task.exception()


def _stdin(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    """Its standard input, which is a pipe."""
    if process.stdin is None:
        raise RuntimeError("the helper has no standard input")
    return process.stdin


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    """Its standard output, which is a pipe."""
    if process.stdout is None:
        raise RuntimeError("the helper has no standard output")
    return process.stdout


_SHARED: dict[tuple[str, str], Helper] = {}


def shared(
    settings: HelperSettings,
    clock: Clock,
    changed: Callable[[HelperState], None] = lambda _state: None,
) -> HelperShare:
    """A share in the helper that has this home: pools with the same one have one helper between them."""
    key = (str(settings.home), str(settings.python))
    helper = _SHARED.get(key)
    if helper is None or helper.closed:
        helper = _SHARED[key] = Helper(settings, clock, changed)
    return helper.share()
