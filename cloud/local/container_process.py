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
import json
import os
import sys
from collections.abc import Sequence

from cloud.node_boot import Boot
from cloud.node_checks import ask, last
from cloud.node_container import RUNTIMES, Runtime, find, prepared, remove
from cloud.node_metadata import Refused

REPORT = "boot.json"


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
    try:
        runtime, names = find(options.runtime), [options.name]
        if options.what == "sweep":
            names = _begin_so(runtime, options.name)
        for name in names:
            remove(runtime, name)
    except (Refused, OSError) as error:
        print(f"container: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _begin_so(runtime: Runtime, start: str) -> list[str]:
    """The names of containers that begin so. Raises Refused, OSError."""
    listing = (runtime.program, "ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{start}")
    status, output = ask(listing)
    if status:
        raise Refused(f"containers cannot be listed: {last(output)}")
    return output.split()


if __name__ == "__main__":
    sys.exit(main())
