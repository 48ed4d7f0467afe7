"""What the listener for node reports needs: files, a secret, an address that nodes can call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.config.tables.agents import AgentsTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import (
    is_credential,
    is_open,
    unreadable,
)

SHORTEST_SECRET: Final = 16  # bytes, as `AgentReceiver` wants them

_URL: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/?")

Found = tuple[tuple[str, ...], str]  # key path, sentence


def agents_errors(pool_name: str, pool: PoolConfig) -> Iterator[Found]:
    """What keeps the listener from opening; nothing while it is off.

    Credentials of systemd are given to the daemon's unit alone, so only the daemon can miss them.
    """
    agents, at = pool.agents, ("pool", pool_name, "agents")
    if agents.listen is None:
        return
    if (agents.tls_cert_file is None) != (agents.tls_key_file is None):
        missing = "tls_key_file" if agents.tls_key_file is None else "tls_cert_file"
        yield (*at, missing), "is missing; TLS needs certificate and private key, so write both or neither"
    for key, file in _files(agents):
        if is_credential(file):
            continue
        fault = unreadable(file)
        if fault:
            yield (*at, key), fault
        elif key == "secret_file" and len(agents.secret()) < SHORTEST_SECRET:
            yield (
                (*at, key),
                f"{file} holds fewer than {SHORTEST_SECRET} bytes; make one with "
                f"`openssl rand -hex 32 > {file}`",
            )
    if agents.url and not _URL.fullmatch(agents.url):
        yield (*at, "url"), 'is not a URL of name and port; write it as "https://NAME:PORT"'
    elif agents.url and agents.url.startswith("https:") != (agents.tls_cert_file is not None):
        yield (*at, "url"), "and the listener differ: https:// needs tls_cert_file, http:// has none"
    if not agents.url and agents.listen.host in ("0.0.0.0", "::"):  # noqa: S104 - it is refused here
        yield (*at, "url"), f'is missing; nodes cannot call {agents.listen.host}, write "https://NAME:PORT"'


def agents_warnings(pool_name: str, pool: PoolConfig) -> Iterator[Found]:
    """What is doubtful about the listener, and what only the daemon's unit can have."""
    agents, at = pool.agents, ("pool", pool_name, "agents")
    if agents.listen is None:
        return
    if agents.tls_cert_file is None and not agents.listen.loopback:
        yield (
            (*at, "tls_cert_file"),
            "is not set, so what nodes report can be read on the way; reports are signed all the same, but "
            "no node can fetch its key here",
        )
    for key, file in _files(agents):
        if is_credential(file):
            yield (
                (*at, key),
                f"is the systemd credential {file.name}, which this process was not given; the daemon's unit "
                f"needs LoadCredential={file.name}:PATH, or write the path of a file here",
            )
        elif key in ("secret_file", "tls_key_file") and is_open(file):
            yield (*at, key), f"{file} can be read by other users; close it with chmod 600"


def _files(agents: AgentsTable) -> list[tuple[str, Path]]:
    keys = ("secret_file", "tls_cert_file", "tls_key_file", "ca_file")
    return [(key, file) for key in keys if (file := getattr(agents, key)) is not None]
