"""What the logs of real engines tell of their starts."""

from pathlib import Path
from typing import Any

import pytest
from llama_servers import running_llama
from vllm_server import VllmServer, skip_without_vllm

from cloud.node_log import StartLog


def read(log: Path) -> dict[str, Any]:
    found = StartLog()
    for line in log.read_text(errors="replace").splitlines():
        found.take(line)
    return found.told()


@pytest.mark.llamacpp
def test_llama_cpp(tmp_path: Path) -> None:
    with running_llama(tmp_path) as server:
        told = read(server.log)
    assert told["serves"]
    assert told["took"].keys() == {"load"}
    assert told["took"]["load"] > 0.0


@pytest.mark.vllm
async def test_vllm(tmp_path: Path) -> None:
    """The CPU build, eager: it compiles and captures nothing, and says nothing of either."""
    skip_without_vllm()
    server = VllmServer(tmp_path)
    try:
        await server.start()
        told = read(server.log)
    finally:
        server.end()
    assert told["serves"]
    assert told["took"].keys() == {"load", "warm_up"}
