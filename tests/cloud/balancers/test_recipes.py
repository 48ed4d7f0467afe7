"""The configurations of docs/how-to/other-balancers.md, on the real programs."""

import asyncio
import re

import aiohttp
import pytest

from tests.support.balancer_programs import PATIENCE, ROOT, VENV, free_ports, need
from tests.support.named_backends import NamedBackend

PAGE = (ROOT / "docs" / "how-to" / "other-balancers.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = {
    "traefik": ["--configfile=traefik.yaml"],
    "caddy": ["run", "--config", "Caddyfile", "--adapter", "caddyfile"],
}


@pytest.mark.parametrize("program", COMMANDS)
async def test_a_recipe_carries_requests(program, tmp_path):
    need(program)
    (port,) = free_ports(1)
    server = NamedBackend("gateway")
    await server.start()
    for name, text in FILES.items():
        text = text.replace(":8080", f":{port}").replace("127.0.0.1:8000", server.address)
        (tmp_path / name).write_text(text, encoding="utf-8")
    child = await asyncio.create_subprocess_exec(
        str(VENV / "bin" / program),
        *COMMANDS[program],
        cwd=tmp_path,
        env={"HOME": str(tmp_path)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            answer = ""
            while "gateway" not in answer:
                try:
                    url = f"http://127.0.0.1:{port}/v1/chat/completions"
                    async with session.post(url, json={"model": "m"}) as said:
                        answer = await said.text()
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
                assert child.returncode is None
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        await server.stop()
    assert server.served
