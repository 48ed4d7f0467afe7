"""What a support bundle holds: the output of our own commands, metrics, versions, the services' logs.

Every part is bounded in time and size, and passes the redactor before it is written. A part that cannot be
had says why in its place: a bundle is made when things are broken.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from orchestrator import __version__
from orchestrator.api.client import ClientError, ControlClient
from orchestrator.config.checks.routes import by_name
from orchestrator.config.load import Config
from orchestrator.config.values import settings
from orchestrator.redact import Redactor

LARGEST: Final = 8 * 2**20
"""Bytes of one part; of a longer one the end is kept."""

_PATIENCE: Final = 120.0  # s for one command
_EVENTS: Final = "5000"
_SPEND_DAYS: Final = 8
_COSTS: Final = "31d"
_LOG_LINES: Final = "5000"
_UNITS: Final = ("spot-orchestrator.service", "spot-orchestrator-gateway.service")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the bundle. `ok` is False where the part could not be had and the text says why."""

    name: str
    text: str
    ok: bool


def parts(file: Path, config: Config | None, redactor: Redactor) -> Iterator[Part]:
    """Every part, one after another. `config` is None where the file is faulty: the rest is collected."""
    sources: list[tuple[str, Callable[[], str]]] = [
        ("about.json", about),
        ("file.toml", lambda: file.read_text(encoding="utf-8", errors="replace")),
    ]
    pools = () if config is None else tuple(config.pools)
    sources += [(name, _command(words)) for name, words in _commands(file, pools)]
    if config is not None:
        sources += _running(config)
    if shutil.which("journalctl") is not None:
        sources += [(f"{unit}.log", _log(unit)) for unit in _UNITS]
    for name, source in sources:
        yield _part(name, source, redactor)


def _running(config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    """What daemon and gateway say of themselves, and what was spent at providers."""
    daemon, gateway = ControlClient(config.daemon.socket), ControlClient(config.gateway.socket)
    yield "daemon.prom", partial(daemon.text, "/metrics")
    yield "gateway.prom", partial(gateway.text, "/metrics")
    for name in config.pools:
        file = "gateway.json" if len(config.pools) == 1 else f"gateway-{name}.json"
        yield file, partial(gateway.text, f"/v1/state?pool={name}")
    if by_name(config.pools, config.routes):
        yield "routes.json", partial(gateway.text, "/v1/routes")
    if config.providers:
        yield "spend.json", partial(_spend, config.gateway.spend_file)


def _spend(file: Path) -> str:
    """The sums of the last days for each provider, route and model, in picodollars and tokens. Reads the file
    itself: the gateway may be down."""
    from cloud.clock import SystemClock
    from orchestrator.gateway.spend_file import Unusable, read_totals

    try:
        days = read_totals(file, SystemClock().now(), days=_SPEND_DAYS)
    except Unusable as error:
        raise ClientError(str(error)) from error
    return json.dumps([asdict(day) for day in days], indent=2)


def secrets(config: Config) -> Iterator[str]:
    """Secrets that the configuration names: what its files hold, as far as this user may read them."""
    for setting in settings(config):
        if isinstance(setting.value, Path) and str(setting.path[-1]).endswith(("key_file", "secret_file")):
            try:
                yield setting.value.read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                continue


def write(to: Path, found: Iterable[Part], *, folder: str, at: float) -> list[Part]:
    """Make the archive, which only its owner may read; the parts in it. Raises OSError.

    A file that is there is never replaced.
    """
    written = []
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for part in found:
                data = part.text.encode()
                entry = tarfile.TarInfo(f"{folder}/{part.name}")
                entry.size, entry.mtime, entry.mode = len(data), int(at), 0o600
                archive.addfile(entry, io.BytesIO(data))
                written.append(part)
    except BaseException:
        to.unlink(missing_ok=True)
        raise
    return written


def about() -> str:
    """Versions of everything that could matter, as JSON."""
    installed = {d.name: d.version for d in metadata.distributions() if d.name}
    return json.dumps(
        {
            "orchestrator": __version__,
            "python": sys.version,
            "executable": sys.executable,
            "sqlite": sqlite3.sqlite_version,
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "distributions": dict(sorted(installed.items())),
        },
        indent=2,
    )


def _commands(file: Path, pools: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Our own commands, those about one pool for each of several."""
    here = ("--config", str(file))
    yield "config.toml", ("config", "show", str(file), "--effective", "--origin")
    yield "validate.json", ("validate", str(file), "-o", "json")
    yield "status.json", ("status", "-o", "json", "--no-exit-code", *here)
    yield "plan.json", ("plan", "-o", "json", *here)
    one_by_one = [(f"-{pool}", ("--pool", pool)) for pool in pools] if len(pools) > 1 else [("", ())]
    for of, named in one_by_one:
        yield f"explain{of}.txt", ("explain", "pool", *named, *here)
        yield f"history{of}.json", ("history", "-n", "256", "-o", "json", *named, *here)
    spent = ("cost", "--since", _COSTS, "-o", "json", *here, "--by")
    yield "cost.json", (*spent, "pool,day,zone,market")
    yield "cost-use.json", (*spent, "pool,day,route,model,adapter,key")
    yield "events.json", ("events", "-n", _EVENTS, "-o", "json", *here)
    yield "journal.json", ("journal", "show", "-o", "json", *here)
    yield "doctor.json", ("doctor", "-o", "json", *here)


def _command(words: Sequence[str]) -> Callable[[], str]:
    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
        if done.stdout:
            return done.stdout
        raise ClientError(done.stderr.strip() or f"no output, exit code {done.returncode}")

    return run


def _log(unit: str) -> Callable[[], str]:
    def read() -> str:
        asked = ["journalctl", "--unit", unit, "--lines", _LOG_LINES, "--no-pager", "--output", "short-iso"]
        done = subprocess.run(
            asked, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
        if done.returncode != 0:
            raise ClientError(done.stderr.strip() or f"journalctl ended with {done.returncode}")
        return done.stdout

    return read


def _part(name: str, source: Callable[[], str], redactor: Redactor) -> Part:
    try:
        text, ok = source(), True
    except subprocess.TimeoutExpired:
        text, ok = f"not collected: no end within {_PATIENCE:g} s\n", False
    except (ClientError, OSError) as error:
        text, ok = f"not collected: {error}\n", False
    return Part(name, redactor.text(_end_of(text)), ok)


def _end_of(text: str) -> str:
    if len(text) <= LARGEST:
        return text
    return f"(the beginning is left out: {len(text) - LARGEST} characters)\n{text[-LARGEST:]}"
