"""The [pool.NAME.agents] table: where the agents of the nodes report, and what that needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from orchestrator.config.types import (
    CREDENTIALS,
    AddressOrOff,
    FilePath,
    Section,
    is_credential,
    is_open,
    path_key,
    unreadable,
)

if TYPE_CHECKING:
    from orchestrator.config.load import PoolConfig

SHORTEST_SECRET: Final = 16  # bytes, as `AgentReceiver` wants them

_URL: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/?")

Found = tuple[tuple[str, ...], str]  # key path, sentence


class AgentsTable(Section):
    """The third source of notices: the agent on each node reports metadata notices, GPUs and Xid errors here.

    Off by default. Every report is signed with the node's own key, which follows from the secret.
    """

    listen: AddressOrOff = Field(
        default=None,
        description='Address on which node reports are taken, or "off". Nodes must reach it.',
        examples=["10.0.0.5:9465"],
        json_schema_extra={"default": "off"},
    )
    url: str = Field(
        default="",
        description="Where nodes find it, when that is not `listen` itself: a name of the certificate.",
        examples=["https://control.internal:9465"],
    )
    secret_file: FilePath = path_key(
        f"{CREDENTIALS}/agent-secret",
        "File with the pool's secret, at least 16 random bytes. Each node's key is made from it; nodes never "
        "see it. The default is the systemd credential agent-secret.",
    )
    tls_cert_file: FilePath | None = Field(
        default=None,
        description="Certificate chain (PEM) of the listener. Without one reports travel in plain text, "
        "signed, and no node can fetch its key here.",
        json_schema_extra={"default": None},
    )
    tls_key_file: FilePath | None = Field(
        default=None,
        description="Private key (PEM) of the certificate.",
        examples=[f"{CREDENTIALS}/agent-tls-key"],
        json_schema_extra={"default": None},
    )
    ca_file: FilePath | None = Field(
        default=None,
        description="Certificates (PEM) that nodes trust for the listener. Empty means tls_cert_file, which "
        "fits a certificate that signs itself.",
        json_schema_extra={"default": None},
    )

    @property
    def node_url(self) -> str:
        """The URL that nodes are given; empty when nothing listens."""
        if self.listen is None:
            return ""
        if self.url:
            return self.url.rstrip("/")
        return f"{'https' if self.tls_cert_file is not None else 'http'}://{self.listen}"

    @property
    def trusted_file(self) -> Path | None:
        """The certificates that nodes trust; None for those of their system or for plain HTTP."""
        return self.ca_file or self.tls_cert_file

    def secret(self) -> bytes:
        """The pool's secret, without a line feed at its end. Raises OSError."""
        return self.secret_file.read_bytes().strip()


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
