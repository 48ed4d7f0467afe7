"""Asks EC2's instance metadata (IMDSv2) on a node.

Standard library only, Python 3.9 or newer: what runs on nodes uses it.
"""

# This file runs where nothing of the project is installed and on older Pythons: hence time and threads
# instead of the project's Clock and asyncio.
from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
import time
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

IMDS = "http://169.254.169.254"
TOKEN_SECONDS = 21600
MOST_READ = 64 * 1024  # bytes of any answer
NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Refused(Exception):
    """An answer that is no use, or none; the message is for people."""


def fetch(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 2.0,
    trust: ssl.SSLContext | None = None,
    most: int = MOST_READ,
    told: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """One request: status and body. It ends after about `timeout` seconds, name lookup apart.

    `told` gets the headers of the answer, by their names in small letters. Raises Refused when there is no
    answer, or one of more than `most` bytes.

    No proxies and no redirects: both addresses are given and near. The time-outs of sockets count from the
    last byte, so a server that drips bytes is cut off by closing the connection from a timer.
    """
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=trust)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    except http.client.HTTPException as error:
        raise Refused(f"{url}: {error}") from None

    def cut() -> None:
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout, cut)
    timer.daemon = True
    timer.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        found = answer.read(most + 1)
        if told is not None:
            told.update((name.lower(), value) for name, value in answer.getheaders())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Refused(f"{url}: {type(error).__name__}: {error}") from None
    finally:
        timer.cancel()
        connection.close()
    if len(found) > most:
        raise Refused(f"{url}: more than {most} bytes")
    return answer.status, found


class Metadata:
    """Reads IMDSv2. The token is renewed early, and once more when it is refused."""

    def __init__(self, base: str, timeout: float = 1.0) -> None:
        self._base = base.rstrip("/")
        self._timeout = timeout
        self._token = ""
        self._renew_at = 0.0

    def get(self, path: str) -> str | None:
        """A document below /latest/, None when there is none (the normal answer). Raises Refused."""
        for fresh in (False, True):
            if fresh or not self._token or time.monotonic() >= self._renew_at:  # noqa: TID251
                self._take_token()
            url = f"{self._base}/latest/{path}"
            status, body = fetch(
                url, headers={"X-aws-ec2-metadata-token": self._token}, timeout=self._timeout
            )
            if status == 200:
                return body.decode("utf-8", "replace")
            if status == 404:
                return None
            if status != 401:
                raise Refused(f"{url}: status {status}{'; is IMDS switched off?' if status == 403 else ''}")
            self._token = ""
        raise Refused(f"{self._base}: a fresh token is refused")

    def _take_token(self) -> None:
        url = f"{self._base}/latest/api/token"
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, body = fetch(url, "PUT", header, timeout=self._timeout)
        token = body.decode("ascii", "replace").strip()
        if status != 200 or not token.isprintable() or not 0 < len(token) <= 4096:
            raise Refused(
                f"{url}: no token: status {status}{'; is IMDS switched off?' if status == 403 else ''}"
            )
        self._token = token
        self._renew_at = time.monotonic() + TOKEN_SECONDS / 2  # noqa: TID251


def node_id(text: str) -> str:
    """The text when it can be a node's id. Raises Refused."""
    if not NODE_ID.fullmatch(text):
        raise Refused(f"{text[:64]!r} is no node id")
    return text


def metadata_of(base: str) -> Any:
    """The metadata of the cloud that the unit names, under the names of EC2's."""
    cloud = os.environ.get("ORCHESTRATOR_CLOUD")
    # what a node gets at its first boot carries the module where it is needed
    return import_module(f"cloud.node_{cloud}").metadata(base) if cloud else Metadata(base)
