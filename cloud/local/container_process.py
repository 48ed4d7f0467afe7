"""The process of a node whose engine runs in a container: it becomes ``docker run``, or removes a container.

run     Finds docker or podman, removes what was left, fetches the image unless it is there, and becomes
        ``docker run``, whose exit status and output are the engine's, and which passes its signals on. The
        container is described in JSON, as `cloud.ports.Container` with "argv" and "environment", the names
        of variables.
remove  Removes a container of a name, whatever it does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from cloud.node_container import RUNTIMES, find, prepared, remove
from cloud.node_metadata import Refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Become ``docker run``, or remove a container."""
    parser = argparse.ArgumentParser(prog="python3 -m cloud.local.container_process")
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run", help="become the engine's container")
    run.add_argument("name", help="the container's name")
    run.add_argument("description", help="the container, with its argv and environment, in JSON")
    end = what.add_parser("remove", help="remove a container")
    end.add_argument("name", help="the container's name")
    end.add_argument("--runtime", default="", choices=("", *RUNTIMES), help="docker or podman (what is here)")
    options = parser.parse_args(arguments)
    try:
        if options.what == "remove":
            remove(find(options.runtime), options.name)
            return 0
        given = json.loads(options.description)
        argv = prepared(options.name, given, given["argv"], given["environment"], _tell)
        _tell(f"{given['image']} starts in {argv[0]}")
        os.execvp(argv[0], argv)  # noqa: S606 - the runtime that runs the pool's engine
    except (Refused, OSError) as error:
        _tell(str(error))
    return 1


def _tell(text: str) -> None:
    print(f"container: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
