"""The [pool.NAME.agents] table: where the agents of the nodes report."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from orchestrator.config.types import (
    CREDENTIALS,
    AddressOrOff,
    FilePath,
    Section,
    path_key,
)


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
