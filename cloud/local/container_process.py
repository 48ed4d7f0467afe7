"""The process of a node whose engine runs in a container: it becomes ``docker run``, or removes containers.

run     Finds docker or podman, removes what was left, fetches the image unless it is there, and becomes
        ``docker run``, whose exit status and output are the engine's, and which passes its signals on. The
        container is described in JSON, as `cloud.ports.Container` with "argv" and "environment", the names
        of variables. When each stage began stands in the boot report (`cloud.node_boot`) of the directory
        where it runs.
remove  Removes a container of a name, whatever it does.
sweep   Removes every container whose name begins so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from cloud.node_boot import Boot
from cloud.node_checks import ask, last
from cloud.node_container import RUNTIMES, Runtime, find, prepared, remove
from cloud.node_metadata import Refused

REPORT = "boot.json"
_TRIES = 80
_AGAIN_SECONDS = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Become ``docker run``, or remove containers."""
    parser = argparse.ArgumentParser(prog="python3 -m cloud.local.container_process")
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run", help="become the engine's container")
    run.add_argument("name", help="the container's name")
    run.add_argument("description", help="the container, with its argv and environment, in JSON")
    for name, about in (("remove", "remove a container"), ("sweep", "remove all that are called so")):
        end = what.add_parser(name, help=about)
        end.add_argument("name", help="the container's name, or how their names begin")
        end.add_argument("--runtime", default="", choices=("", *RUNTIMES), help="docker or podman (either)")
    options = parser.parse_args(arguments)
    return _run(options) if options.what == "run" else _end(options)


def _run(options: argparse.Namespace) -> int:
    boot, given = Boot(REPORT, "container"), json.loads(options.description)
    try:
        argv = prepared(options.name, given, given["argv"], given["environment"], boot)
        boot.stage("start", f"{given['image']} starts in {argv[0]}")
        os.execvp(argv[0], argv)  # noqa: S606 - the runtime that runs the pool's engine
    except (Refused, OSError) as error:
        boot.stage("failed", str(error), ok=False)
    return 1


def _end(options: argparse.Namespace) -> int:
    exact = options.what == "remove"
    try:
        runtime = find(options.runtime)
        for name in [options.name] if exact else _begin_so(runtime, options.name):
            remove(runtime, name)
        _delete_forgotten(options.name, exact)
    except (Refused, OSError) as error:
        print(f"container: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _delete_forgotten(start: str, exact: bool) -> None:
    """Delete containers that podman has forgotten, since it was killed while it made them.

    Their minder, conmon, would wait for ever with a process of the container that nobody starts. Its words
    have all that ends them: the name, the id, and the program that made it. Raises Refused, OSError.
    """
    said = ""
    for _ in range(_TRIES):
        found = [m for m in _minders() if m["-n"] == start or (not exact and m["-n"].startswith(start))]
        if not found:
            return
        for minder in found:
            said = ask((minder["-r"], "delete", "--force", minder["-c"]))[1]
        time.sleep(_AGAIN_SECONDS)  # noqa: TID251 - it may be in the making
    raise Refused(f"container {start} was forgotten and cannot be deleted: {last(said)}")


def _minders() -> Iterator[dict[str, str]]:
    """The words of every conmon, by flag: of interest are name, id and OCI runtime."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith("conmon") and {"-n", "-r", "-c"} <= set(words):
                yield dict(pairwise(words))


def _begin_so(runtime: Runtime, start: str) -> list[str]:
    """The names of containers that begin so. Raises Refused, OSError."""
    listing = (runtime.program, "ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{start}")
    status, output = ask(listing)
    if status:
        raise Refused(f"containers cannot be listed: {last(output)}")
    return output.split()


if __name__ == "__main__":
    sys.exit(main())
