"""Planted secrets are nowhere to be found: logs, metrics, status, command lines, journal, bundle."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.certificates import pair

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(240)]

ENGINE, HUB, AGENT = "planted-engine-5f2c", "planted-hub-91aa", "planted-agent-secret-77e0"
CLIENT, REVOKED, STRANGER = (f"sk-orch-planted-{who}-03d1" for who in ("client", "revoked", "stranger"))
SECRETS = (ENGINE, HUB, AGENT, CLIENT, REVOKED, STRANGER)

READ = (
    ("status", "-o", "json"),
    ("status", "-o", "wide"),
    ("nodes", "-o", "json"),
    ("events", "-n", "5000", "-o", "json"),
    ("plan", "-o", "json"),
    ("explain", "pool"),
    ("history", "-o", "json"),
    ("journal", "show", "-o", "json"),
    ("journal", "export"),
    ("doctor", "-o", "json"),
    ("keys", "list", "-o", "json"),
)


def changes(directory: Path, agents_port: int) -> Mapping[str, Mapping[str, object]]:
    for name, secret in (("engine.key", ENGINE), ("agent.secret", AGENT)):
        (directory / name).write_text(secret + "\n", encoding="utf-8")
        (directory / name).chmod(0o600)
    key = str(directory / "engine.key")
    clients = directory / "keys.toml"
    clients.write_text(
        f'[key.team-a]\nsha256 = "{digest(CLIENT)}"\nhint = "{CLIENT[-4:]}"\n'
        f'[key.gone]\nsha256 = "{digest(REVOKED)}"\nhint = "{REVOKED[-4:]}"\nrevoked = true\n'
    )
    clients.chmod(0o600)
    made = pair(directory).write()
    return {
        "gateway": {"keys_file": str(clients)},
        "pool.test": {"replicas": 2},
        "pool.test.engine": {"api_key_file": key},
        "pool.test.engine.env": {"HF_TOKEN": HUB, "VLLM_API_KEY": ENGINE},
        "pool.test.gateway": {
            "api_key_file": key,
            "tls_cert_file": str(made.certificate),
            "tls_key_file": str(made.key),
        },
        "pool.test.agents": {
            "listen": f"127.0.0.1:{agents_port}",
            "secret_file": str(directory / "agent.secret"),
        },
    }


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def asked(stack: Any) -> list[int]:
    """What clients get, by their keys: one of each kind, in both ways to show it, plain and streamed."""
    statuses = []
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(
        f"https://127.0.0.1:{stack.gateway_port}", connector=connector
    ) as session:
        for secret in (CLIENT, REVOKED, STRANGER):
            for head in ({"Authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
                body = {"model": "simulated", "prompt": "x", "max_tokens": 3, "stream": "x-api-key" in head}
                async with session.post("/v1/completions", json=body, headers=head) as answer:
                    assert secret not in await answer.text()
                    statuses.append(answer.status)
    return statuses


def found_in(texts: Mapping[str, bytes], more: Iterable[str] = ()) -> list[str]:
    return [
        f"{secret} in {name}"
        for name, text in texts.items()
        for secret in (*SECRETS, *more)
        if secret.encode() in text
    ]


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """What daemon and gateway keep on disk, and the logs of all; the cloud's own files are left out."""
    own = ("pool.toml", "engine.key", "agent.secret", "listener.key")
    for path in directory.rglob("*"):
        if path.is_file() and path.name not in own and "cloud" not in path.parts:
            yield str(path.relative_to(directory)), path.read_bytes()


def logs_of_nodes(directory: Path) -> Iterator[tuple[str, bytes]]:
    """What the machines of the local cloud wrote."""
    for path in (directory / "state" / "cloud").rglob("*"):
        if path.is_file():
            yield str(path.relative_to(directory)), path.read_bytes()


async def test_no_secret_leaves_its_file(new_stack: Any, tmp_path: Path, free_port: int) -> None:
    async with new_stack(changes(tmp_path, free_port)) as stack:
        await stack.settled()
        assert await asked(stack) == [200, 200, 401, 401, 401, 401]
        done = await asyncio.gather(*(stack.cli(*words) for words in READ))
        texts = {" ".join(words): (d.out + d.err).encode() for words, d in zip(READ, done, strict=True)}
        assert all(len(d.out) > 1 for d in done), [(w, d.err) for w, d in zip(READ, done, strict=True)]
        texts["daemon's metrics"] = (await stack.get(stack.monitoring_port, "/metrics")).encode()
        texts["gateway's metrics"] = (await stack.get(stack.gateway_metrics_port, "/metrics")).encode()
        node = next(iter(await stack.nodes()))
        texts["node"] = (await stack.cli("node", node, "-o", "json")).out.encode()
        texts["command lines"] = "\n".join(stack.command_lines().values()).encode()
        bundle = tmp_path / "bundle.tar.gz"
        made = await stack.cli("support-bundle", "--to", str(bundle), "-o", "json")
        assert made.code == 0, made.err
        parts = {part["name"]: part["ok"] for part in json.loads(made.out)["parts"]}
        assert all(ok for name, ok in parts.items() if not name.endswith(".log")), parts
        with tarfile.open(bundle) as archive:
            for member in archive.getmembers():
                handle = archive.extractfile(member)
                assert handle is not None
                texts[f"bundle/{member.name}"] = handle.read()
        bundle.unlink()
        texts |= dict(files(tmp_path))
        of_nodes = dict(logs_of_nodes(tmp_path))
    private = [line for line in (tmp_path / "listener.key").read_text().splitlines() if "KEY" not in line]
    assert found_in(texts, private) == []
    others = {name: text for name, text in texts.items() if name != "keys.toml"}
    assert found_in(others, map(digest, SECRETS)) == []
    assert of_nodes
    assert not any(secret.encode() in text for text in of_nodes.values() for secret in (CLIENT, *private))
    assert any(name.endswith("journal.db") for name in texts)
    assert any(name.endswith("daemon.log") for name in texts)


async def test_a_bundle_of_a_daemon_that_is_down(new_stack: Any, tmp_path: Path) -> None:
    """It says what it could not collect, and never replaces a file."""
    async with new_stack() as stack:
        await stack.stop("daemon")
        bundle = tmp_path / "bundle.tar.gz"
        done = await stack.cli("support-bundle", "--to", str(bundle))
        assert done.code == 0, done.err
        assert "not collected: status.json" in done.out
        assert bundle.stat().st_mode & 0o777 == 0o600
        with tarfile.open(bundle) as archive:
            names = {Path(member.name).name: member for member in archive.getmembers()}
            handle = archive.extractfile(names["status.json"])
            assert handle is not None
            assert b"the daemon cannot be reached" in handle.read()
        again = await stack.cli("support-bundle", "--to", str(bundle))
        assert again.code == 1
        assert "is there already" in again.err


async def test_a_bundle_of_a_faulty_configuration(new_stack: Any, tmp_path: Path) -> None:
    async with new_stack(parts=("local-cloud",)) as stack:
        text = (
            stack.config.read_text()
            + f'\n[pool.test.engine.env]\nHF_TOKEN = "{HUB}"\nreplcas = 1\n[nonsense]\n'
        )
        stack.config.write_text(text)
        bundle = tmp_path / "bundle.tar.gz"
        done = await stack.cli("support-bundle", "--to", str(bundle))
        assert done.code == 0, done.err
        assert "has faults" in done.err
        with tarfile.open(bundle) as archive:
            texts = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert found_in(texts) == []
    assert any(b"nonsense" in text for name, text in texts.items() if name.endswith("file.toml"))
