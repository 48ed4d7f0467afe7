"""Keys and HTTPS together, as a day has them: limits, a key that is revoked, certificates, and no key told.

A whole pool runs here: a local cloud with simulated engines, a daemon, and two gateway processes that share
one file of keys, one certificate, and what they count. The command line makes the keys. Clients over HTTPS
ask at both gateways:

    requests, tokens, in-flight   ask for far more than their key may have, all the time
    steady                        streams and plain answers without a limit, half of them on new connections
    leaver                        asks all the time, until its key is revoked

Meanwhile the certificate is replaced again and again, and one gateway hands over to a new process. Then all
that people see or keep is searched for the keys and for the key of the certificate: logs, metrics, command
lines (all that ran in the meantime), the answers of the command line, a support bundle, the journal and every
other file.

    python bench/clients_day.py
    python bench/clients_day.py --seconds 300 -o json
    python bench/clients_day.py --quick

Exit code 1 when more than a tenth beyond a limit was let through in a minute, or less than nine tenths of it;
when a steady request fails; when the revoked key is taken for longer than 2 s; when a key is found.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from certificates import pair
from gateway_rig import PATIENCE, machine, progress, until
from secret_search import CommandLines, digest, files, leaks

from cloud.local.config import LocalCloudConfig, Reclaiming, dump_config
from orchestrator.demo.processes import Process

LIMITS = {"requests": 240, "tokens": 6_000, "in-flight": 6}
FLAGS = {"requests": "--requests-per-minute", "tokens": "--tokens-per-minute", "in-flight": "--in-flight"}
CLIENTS = 6  # of each key at each gateway
STREAMS = 30  # of steady clients at each gateway
OFF = 0.1  # of a limit
REVOKED_WITHIN = 2.0  # s
MOST = 40  # tokens of an answer
MINUTE = 60.0
READ = (
    ("status", "-o", "json"),
    ("routes", "-o", "json"),
    ("events", "-n", "5000", "-o", "json"),
    ("journal", "show", "-o", "json"),
    ("keys", "list", "-o", "json"),
    ("keys", "list"),
    ("doctor", "-o", "json"),
    ("cost", "-o", "json"),
    ("config", "show"),
)


# -- the pool ----------------------------------------------------------------------------------------


class Pool:
    """The processes. `gateways`: the ports of both; `heir`: the process that the first handed over to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        (self.state / "cloud").mkdir(parents=True)
        self.tls = directory / "tls"
        self.tls.mkdir()
        self.certificate = pair(self.tls).write()
        self.config = self._written("one")
        self.other = self._written("two")
        self.market = directory / "market.json"
        reclaiming = Reclaiming(notice=30.0)
        dump_config(
            LocalCloudConfig(
                state_dir=self.state / "cloud", boot_delay=0.3, boot_jitter=0.0, reclaiming=reclaiming
            ),
            self.market,
        )
        self.parts: dict[str, Process] = {}
        self.gateways: list[int] = []
        self.heir = 0

    def _written(self, name: str) -> Path:
        """The configuration; that of the second gateway has sockets of its own."""
        file, state = self.directory / f"{name}.toml", self.state
        file.write_text(
            f"""
[daemon]
state_dir = "{state}"
socket = "{state}/daemon.sock"
listen = "off"
log_format = "json"
tick = "500ms"
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "off"
socket = "{state}/gateway-{name}.sock"
tls_cert_file = "{self.tls}/listener.crt"
tls_key_file = "{self.tls}/listener.key"
keys_file = "{self.directory}/keys.toml"
[pool.chat]
replicas = 3
model = "simulated"
engine.kind = "simulated"
engine.args = ["--load-time", "0.2", "--tokens-per-second", "60", "--max-num-seqs", "200"]
cloud.state_dir = "{state}/cloud"
cloud.socket = "{state}/cloud.sock"
limits.launches_per_minute = 100
""",
            encoding="utf-8",
        )
        return file

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Pool]:
        """Start all of it, and end it."""
        words = {
            "local-cloud": ("local-cloud", "--config", str(self.config), "--market", str(self.market)),
            "gateway-one": ("gateway", "--config", str(self.config)),
            "gateway-two": ("gateway", "--config", str(self.other)),
            "daemon": ("run", "--config", str(self.config)),
        }
        self.parts = {name: Process(name, *w, directory=self.directory) for name, w in words.items()}
        try:
            for part in self.parts.values():
                await part.start()
            for name in ("one", "two"):
                await until(f"gateway {name} has its nodes", partial(self._ready, name))
                self.gateways.append(int((await self.state_of(name))["listen"].rpartition(":")[2]))
            yield self
        finally:
            if self.heir:  # no child of ours
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.heir, signal.SIGKILL)
            for part in reversed(self.parts.values()):
                await part.stop()

    async def _ready(self, name: str) -> bool:
        for part in self.parts.values():
            part.check()
        try:
            rows = (await self.state_of(name))["targets"]
        except (OSError, aiohttp.ClientError):
            return False
        return len(rows) == 3 and all(row["state"] == "healthy" for row in rows)

    async def hand_over(self) -> None:
        """Have the first gateway's process leave its sockets to another."""
        self.heir = int(json.loads(await self.ask("one", "/v1/replace", "POST"))["pid"])

    async def ask(self, name: str, path: str, method: str = "GET") -> str:
        """One answer of a gateway's control socket."""
        connector = aiohttp.UnixConnector(str(self.state / f"gateway-{name}.sock"))
        body = None if method == "GET" else {}
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://gateway{path}", json=body) as answer,
        ):
            return await answer.text()

    async def state_of(self, name: str) -> dict[str, Any]:
        """What a gateway says of itself."""
        found: dict[str, Any] = json.loads(await self.ask(name, "/v1/state"))
        return found

    async def cli(self, *words: str) -> tuple[int, str]:
        """A command of the command line: its exit code and all that it said."""
        with_file = words if words[:2] == ("config", "show") else (*words, "--config")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", *with_file, str(self.config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await child.communicate()
        return child.returncode or 0, out.decode() + err.decode()

    async def new_key(self, name: str, *flags: str) -> str:
        """Make a key. Raises RuntimeError where the command says something else than a key."""
        code, said = await self.cli("keys", "new", name, *flags)
        words = re.findall(r"\bsk-[\w-]{20,}", said)
        if code or not words:
            raise RuntimeError(f"keys new {name}: {said}")
        return str(words[0])


# -- the clients -------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the clients of one key met. `let_in`: when each request began that was answered."""

    let_in: list[float] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0


class Clients:
    """All clients. They trust whatever certificate they are shown: what is shown is not their affair."""

    def __init__(self, ports: list[int], keys: Mapping[str, str], *, streams: int) -> None:
        self._ports, self._keys, self._streams = ports, keys, streams
        self.seen = {name: Seen() for name in keys}
        self.stopping = False
        self._trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._trust.check_hostname, self._trust.verify_mode = False, ssl.CERT_NONE

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask until the block ends, and then to the end of what was begun."""
        tasks = [
            asyncio.create_task(self._greedy(name, port))
            for name in (*LIMITS, "leaver")
            for port in self._ports
            for _ in range(1 if name == "leaver" else CLIENTS)
        ]
        for port in self._ports:
            tasks += [asyncio.create_task(self._steady(port, stream=True)) for _ in range(self._streams)]
            tasks += [asyncio.create_task(self._steady(port, stream=False)) for _ in range(4)]
        try:
            yield
        finally:
            self.stopping = True
            await asyncio.gather(*tasks)

    async def revoked(self) -> float:
        """Wait until the leaver is refused at both gateways; the moment."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trust)) as session:
            for port in self._ports:
                status = 0
                while status != 401:
                    status, _ = await self._asked(session, port, "leaver", tokens=1)
                    await asyncio.sleep(0.02)
        return time.monotonic()

    async def _greedy(self, name: str, port: int) -> None:
        """Ask for more than is allowed; after a refusal again, soon."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trust)) as session:
            while not self.stopping:
                status, wait = await self._asked(session, port, name, stream=name == "in-flight")
                if status == 401:
                    return
                if status != 200:
                    await asyncio.sleep(min(wait, 0.5))

    async def _steady(self, port: int, *, stream: bool) -> None:
        """Ask without a limit; on a new connection each time where it is not for a stream."""
        while not self.stopping:
            connector = aiohttp.TCPConnector(ssl=self._trust)
            async with aiohttp.ClientSession(connector=connector) as session:
                for _ in range(5 if stream else 1):
                    if not self.stopping:
                        await self._asked(session, port, "steady", stream=stream)

    async def _asked(
        self,
        session: aiohttp.ClientSession,
        port: int,
        name: str,
        *,
        stream: bool = False,
        tokens: int = MOST,
    ) -> tuple[int, float]:
        """One request: its status, 0 for none, and the seconds after which it may be tried again."""
        seen, begun = self.seen[name], time.monotonic()
        asked = {"model": "simulated", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        head = {"Authorization": f"Bearer {self._keys[name]}"}
        url = f"https://127.0.0.1:{port}/v1/chat/completions"
        try:
            async with (
                asyncio.timeout(PATIENCE),
                session.post(url, json=asked | {"max_tokens": tokens}, headers=head) as answer,
            ):
                if answer.status == 200:
                    seen.open += 1
                    seen.most_open = max(seen.most_open, seen.open)
                try:
                    text = await answer.text()
                finally:
                    seen.open -= answer.status == 200
        except (aiohttp.ClientError, TimeoutError) as error:
            seen.statuses[0] += 1
            seen.faults.append(repr(error))
            return 0, 0.1
        seen.statuses[answer.status] += 1
        if answer.status == 200:
            seen.let_in.append(begun)
            if stream and "[DONE]" not in text:
                seen.faults.append(text[-200:])
            if not stream:
                seen.tokens.append((begun, int(json.loads(text)["usage"]["total_tokens"])))
        elif name == "steady":
            seen.faults.append(f"{answer.status} {text[:200]}")
        return answer.status, float(answer.headers.get("Retry-After", 0.1))


def most_in_a_minute(counted: list[tuple[float, int]]) -> int:
    """The most that was let in within any 60 seconds, by when it was asked for."""
    ordered = sorted(counted)
    most = held = first = 0
    for at, count in ordered:
        held += count
        while ordered[first][0] <= at - MINUTE:
            held -= ordered[first][1]
            first += 1
        most = max(most, held)
    return most


# -- the search --------------------------------------------------------------------------------------


async def outputs(pool: Pool, lines: CommandLines, read: Sequence[tuple[str, ...]]) -> dict[str, bytes]:
    """All that people see or keep, by its name; `read` are commands."""
    found: dict[str, bytes] = {"command lines": lines.text}
    said_by = await asyncio.gather(*(pool.cli(*words) for words in read))
    for words, (code, said) in zip(read, said_by, strict=True):
        if code and words[0] not in ("doctor", "cost"):
            raise RuntimeError(f"{' '.join(words)}: {said}")
        found[f"orchestrator {' '.join(words)}"] = said.encode()
    for name in ("one", "two"):
        for path in ("/metrics", "/v1/state", "/v1/routes"):
            found[f"gateway {name}{path}"] = (await pool.ask(name, path)).encode()
    bundle = pool.directory / "bundle.tar.gz"
    code, said = await pool.cli("support-bundle", "--to", str(bundle))
    if code:
        raise RuntimeError(f"support-bundle: {said}")
    with tarfile.open(bundle) as archive:
        for member in archive.getmembers():
            if (handle := archive.extractfile(member)) is not None:
                found[f"bundle/{member.name}"] = handle.read()
    bundle.unlink()
    return found | dict(files(pool.directory))


def unsearched(found: Mapping[str, bytes], keys: Mapping[str, str]) -> list[str]:
    """What the search should have met and did not: where keys are named, and what is theirs to be there."""
    wanted = [("keys.toml", digest(key)) for key in keys.values()]
    wanted += [("gateway one/metrics", name.encode()) for name in LIMITS]
    wanted += [(f"state/{name}.db", b"SQLite format 3") for name in ("usage", "journal")]
    wanted += [("command lines", b"keys\0revoke\0leaver"), ("gateway-one.log", b"tls_certificate.loaded")]
    return [f"{what!r} in {where}" for where, what in wanted if what not in found.get(where, b"")]


# -- the day -----------------------------------------------------------------------------------------


async def measure(directory: Path, seconds: float, *, quick: bool) -> dict[str, Any]:
    pool = Pool(directory)
    private: set[bytes] = set()
    lines = CommandLines()

    def renew() -> None:
        made = pair(pool.tls).write()
        private.update(line for line in made.secret.splitlines() if b"KEY" not in line and len(line) > 20)

    renew()
    async with lines.watched():
        progress("  keys are made")
        limited = {name: (FLAGS[name], str(most)) for name, most in LIMITS.items()}
        wanted: dict[str, tuple[str, ...]] = {**limited, "steady": (), "leaver": ()}
        made = await asyncio.gather(*(pool.new_key(name, *flags) for name, flags in wanted.items()))
        keys = dict(zip(wanted, made, strict=True))
        progress("  the pool starts")
        async with pool.running():
            clients = Clients(pool.gateways, keys, streams=4 if quick else STREAMS)
            renewals = 0
            async with clients.running():
                begun = time.monotonic()
                revoke_at, replace_at = begun + seconds * 0.3, begun + seconds * 0.6
                revoked: tuple[float, float] | None = None
                while (now := time.monotonic()) < begun + seconds:
                    renew()
                    renewals += 1
                    progress(f"  {now - begun:.0f} s: certificate {renewals}")
                    if revoked is None and now >= revoke_at:
                        revoked = await revoke(pool, clients)
                    if not pool.heir and now >= replace_at:
                        await pool.hand_over()
                    await asyncio.sleep(min(4.0, seconds / 10))
                lasted = time.monotonic() - begun
            progress("  all that was said is searched")
            found = await outputs(pool, lines, READ[:2] if quick else READ)
    rows = {name: row(name, clients.seen[name]) for name in LIMITS}
    steady = clients.seen["steady"]
    return {
        "machine": machine(),
        "seconds": round(lasted),
        "limits": rows,
        "steady": dict(steady.statuses),
        "steady_faults": steady.faults[:5],
        "certificates": renewals,
        "handed_over": bool(pool.heir),
        "revoked_after_the_command_s": None if revoked is None else round(revoked[1], 2),
        "the_command_took_s": None if revoked is None else round(revoked[0], 2),
        "searched": len(found),
        "searched_bytes": sum(map(len, found.values())),
        "found": leaks(found, keys, private),
        "unsearched": unsearched(found, keys),
    }


async def revoke(pool: Pool, clients: Clients) -> tuple[float, float]:
    """Seconds that the command took, and from its end until both gateways refused the key."""
    begun = time.monotonic()
    refused = asyncio.create_task(clients.revoked())
    code, said = await pool.cli("keys", "revoke", "leaver")
    ended = time.monotonic()
    if code:
        raise RuntimeError(f"keys revoke: {said}")
    return ended - begun, max(0.0, await refused - ended)


def row(name: str, seen: Seen) -> dict[str, Any]:
    """A limit and what was let through; the most of any 60 seconds where it is one of a minute."""
    if name == "in-flight":
        measured: float = seen.most_open
    else:
        measured = most_in_a_minute([(at, 1) for at in seen.let_in] if name == "requests" else seen.tokens)
    return {
        "allowed": LIMITS[name],
        "measured": measured,
        "of it": round(measured / LIMITS[name], 3),
        "refused": seen.statuses[429],
        "others": {status: count for status, count in seen.statuses.items() if status not in (200, 429)},
    }


def missed(rows: dict[str, Any], *, quick: bool) -> list[str]:
    """What does not hold of what must; `quick`: but for what takes a minute, or a machine with time."""
    found = [f"{name} met {one['others']}" for name, one in rows["limits"].items() if one["others"]]
    failed = sum(count for status, count in rows["steady"].items() if status != 200)
    if failed or rows["steady_faults"]:
        found.append(f"{failed} steady requests failed: {rows['steady_faults']}")
    found += rows["found"] + [f"the search did not meet {one}" for one in rows["unsearched"]]
    if quick:
        return found
    found += ["no gateway handed over"] * (not rows["handed_over"])
    found += [f"{name}: {one}" for name, one in rows["limits"].items() if abs(one["of it"] - 1) > OFF]
    if rows["revoked_after_the_command_s"] is None or rows["revoked_after_the_command_s"] > REVOKED_WITHIN:
        found.append(f"the revoked key was taken for {rows['revoked_after_the_command_s']} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=150.0, help="how long the clients ask")
    parser.add_argument("--quick", action="store_true", help="8 seconds: shows that it runs, judges no time")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="day") as directory:
        seconds = 8.0 if options.quick else options.seconds
        rows = asyncio.run(measure(Path(directory), seconds, quick=options.quick))
    rows["missed"] = missed(rows, quick=options.quick)
    if options.output == "json":
        print(json.dumps(rows))
    else:
        print("\n".join(f"{name:28}{value}" for name, value in rows.items()))
    return 1 if rows["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
