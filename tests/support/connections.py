"""Connections as their callers see them."""

from __future__ import annotations

import socket


def still_open(connection: socket.socket) -> bool:
    """False when the other side has ended it. It must not block, and loses a byte where there is one."""
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
