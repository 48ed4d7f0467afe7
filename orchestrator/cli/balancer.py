"""`orchestrator balancer example`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from cloud.balancers.examples import EXAMPLES, Place, example
from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError
from orchestrator.units import parse_host_port

_PLACE: Final = Place()


def print_example(
    kind: Annotated[str, Parameter(help=f"The balancer: {', '.join(EXAMPLES)}.")],
    /,
    *,
    pool: Annotated[str, Parameter(help="The pool in front of which it stands.")] = _PLACE.pool,
    listen: Annotated[
        str, Parameter(metavar="ADDRESS", help="Where clients send their requests.")
    ] = f"{_PLACE.listen_host}:{_PLACE.listen_port}",
    admin_port: Annotated[
        int, Parameter(help="Port of the loopback where the daemon reads it, if it has one.")
    ] = _PLACE.admin_port,
    folder: Annotated[str, Parameter(help="Where its files will lie.")] = _PLACE.folder,
    run: Annotated[str, Parameter(help="Where its sockets will lie.")] = _PLACE.run,
    to: Annotated[
        Path | None, Parameter(metavar="FOLDER", help="Write the files there instead of printing them.")
    ] = None,
) -> int:
    """Print a working configuration of a load balancer, and the daemon's table for it.

    For example:
      orchestrator balancer example haproxy
      orchestrator balancer example envoy --pool chat --listen 0.0.0.0:8000 --to /etc/envoy
    """
    if kind not in EXAMPLES:
        raise CommandError(f"there is no example of {kind!r}; there are {', '.join(EXAMPLES)}")
    try:
        address = parse_host_port(listen)
    except ValueError as error:
        raise CommandError(f"--listen: {error}") from None
    place = Place(
        pool=pool,
        listen_host=address.host,
        listen_port=address.port,
        admin_port=admin_port,
        folder=folder if to is None else str(to.absolute()),
        run=run,
    )
    found = example(kind, place)
    if to is None:
        shared.print_text("\n".join(f"# ---- {name}\n{text}" for name, text in found.items()))
        return shared.OK
    shared.write_files(to, found)
    return shared.OK
