"""Keys over real processes: two gateways, the command line beside them, and a gateway that hands over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

PATIENCE = 60.0
PYTHON = (sys.executable, "-m")


@dataclass
class Gateway:
    """One gateway process; `log` is what it and its heirs wrote."""

    socket: Path
    child: asyncio.subprocess.Process
    log: Path
    heirs: list[int] = field(default_factory=list)

    async def control(self, method, path):
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://gateway{path}", json={}) as answer,
        ):
            return answer.status, await answer.json()

    async def url(self):
        """Where it listens, once it does."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    return f"http://{(await self.control('GET', '/v1/state'))[1]['listen']}"
                await asyncio.sleep(0.05)


@pytest.fixture
def file(short_dir):
    return short_dir / "keys.toml"


@pytest.fixture
def config(short_dir):
    """For the command line; the gateways have settings of their own and the same file of keys."""
    path = short_dir / "pool.toml"
    path.write_text('[gateway]\nkeys_file = "keys.toml"\n[pool.chat]\nreplicas = 1\n')
    return path


@pytest.fixture
async def gateways(short_dir, file):
    made = []
    for name in ("a", "b"):
        settings = {
            "targets_file": str(short_dir / f"{name}.json"),
            "socket": str(short_dir / name),
            "port": 0,
            "linger": 0.0,
            "keys_file": str(file),
        }
        log = short_dir / f"{name}.log"
        with log.open("wb") as out:
            child = await asyncio.create_subprocess_exec(
                *PYTHON, "orchestrator.gateway", json.dumps(settings), stdout=out, stderr=out
            )
        made.append(Gateway(short_dir / name, child, log))
    yield made
    for one in made:
        for pid in (one.child.pid, *one.heirs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await one.child.wait()


async def keys(config, *words):
    """The command line, typed beside the running gateways; its exit code and output."""
    child = await asyncio.create_subprocess_exec(
        *(*PYTHON, "orchestrator", "keys", *words, "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    return child.returncode, out.decode().strip()


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_keys_that_come_and_go_at_two_gateways_and_over_a_change_of_process(gateways, config, file):
    async with aiohttp.ClientSession() as session:  # it keeps its connections

        async def asked(url, secret):
            head = {"Authorization": f"Bearer {secret}"}
            async with session.get(f"{url}/nowhere", headers=head) as answer:
                return answer.status, (await answer.json())["error"]["message"]

        async def until(status, urls, secret):
            async with asyncio.timeout(PATIENCE):
                for url in urls:
                    while (found := await asked(url, secret))[0] != status:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            return found[1]

        urls = [await one.url() for one in gateways]
        assert [(await asked(url, "anything"))[0] for url in urls] == [503, 503]  # there is no file yet
        code, secret = await keys(config, "new", "team-a")
        assert code == 0
        await until(404, urls, secret)  # let in, and there is no such path
        text = file.read_text()

        file.write_text(text + "[key")
        first = gateways[0]
        async with asyncio.timeout(PATIENCE):
            while not (await first.control("GET", "/v1/state"))[1]["keys"]["fault"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        status, body = await first.control("POST", "/v1/replace")
        assert (status, "keys.toml is not TOML" in body["error"]) == (409, True)
        assert (await asked(urls[0], secret))[0] == 404  # the old one has the keys that it read before

        file.write_text(text)
        status, body = await first.control("POST", "/v1/replace")
        assert status == 200
        first.heirs.append(body["pid"])
        assert await asyncio.wait_for(first.child.wait(), PATIENCE) == 0
        await until(404, urls, secret)

        code, _ = await keys(config, "revoke", "team-a")
        assert code == 0
        assert await until(401, urls, secret) == "the key team-a was revoked"

    command_lines = [command_line(pid) for pid in (gateways[1].child.pid, *first.heirs)]
    everything = b"".join([*command_lines, *(one.log.read_bytes() for one in gateways), file.read_bytes()])
    assert b"keys_file.loaded" in everything
    assert secret.encode() not in everything
