#!/usr/bin/env python3
"""Runs an engine in a container on its node, with docker or podman, and takes the container away.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
What ends an engine ends the process that started the container, which may be killed at any instant and then
leaves the container running. So a container has the name of its node: one that was left is removed before the
next is started, and whoever ends a node removes its container afterwards.

A container is described as `cloud.ports.Container` is, as an object in JSON: {"image", "runtime", "args",
"volumes", "entry"}. It has the network of its node, no log of its own (what it writes goes to whoever started
it), and of the environment the variables that are named: their values stand in no command line.

run     Finds docker or podman, removes what was left, fetches the image unless it is there, and becomes
        ``docker run``, whose exit status and output are the engine's, and which passes its signals on.
remove  Removes a container of a name, whatever it does.

Examples:
  python3 -m cloud.node_container run NAME '{"image": "engine:1", "argv": ["serve"], "environment": ["KEY"]}'
  python3 -m cloud.node_container remove NAME --runtime podman

Source: docs.docker.com/reference/cli/docker and docs.podman.io (run, rm, pull, image inspect), the container
toolkit of NVIDIA (--gpus for docker, CDI's nvidia.com/gpu for podman). Run with docker 20.10 and podman 4.3.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cloud.node_checks import Ask, Check, ask
from cloud.node_metadata import Refused

NAME = "orchestrator-engine"  # on a machine that is one node
RUNTIMES = ("docker", "podman")
SHARED_MEMORY = "16g"  # at most; processes of an engine exchange tensors there, and the usual 64 MiB end them
_GPU = "/dev/nvidiactl"
_SPECIFICATIONS = ("/etc/cdi/*", "/run/cdi/*", "/var/run/cdi/*")
_CHOOSES_GPUS = re.compile(r"--gpus\b|nvidia\.com/gpu|--device[= ]/dev/nvidia")
_GONE_SECONDS, _LOOKS = 0.25, 80
_FAULTS = (
    (
        r"no space left",
        "the disk is full; give a larger disk, or an image that holds the layers already",
    ),
    (
        r"no matching manifest|no image found in (image index|manifest list)|exec format error",
        "it is not made for this machine's processor; name another image or instance type",
    ),
    (r"toomanyrequests|rate limit", "the registry limits how often it is asked; log in, or mirror the image"),
    (r"short-name", "podman wants the registry in the name; write REGISTRY/NAME:TAG in engine.image"),
    (
        r"unauthorized|denied|authentication required|forbidden|no basic auth",
        "the registry refuses it to this node; log the node's root in, or correct engine.image",
    ),
    (r"not found|manifest unknown|name unknown|does not exist", "there is none; correct engine.image"),
    (
        r"no such host|lookup|timeout|timed out|connection refused|unreachable|no route|reset by peer|EOF",
        "the registry does not answer; open the node's way to it, or put the image on the machine's image",
    ),
)


class Runtime(NamedTuple):
    """The program that runs containers here. `podman`: which of the two it is, whatever it is called."""

    program: str
    podman: bool


def find(wanted: str = "", run: Ask = ask) -> Runtime:
    """The runtime of that name, or the first one here that answers. Raises Refused."""
    names = (wanted,) if wanted else RUNTIMES
    faults = []
    for name in names:
        if shutil.which(name) is None:
            continue
        try:
            status, output = run((name, "version"))
        except (OSError, TimeoutError) as error:
            status, output = 1, str(error)
        if status == 0:
            return Runtime(name, "podman" in output.lower())
        faults.append(f"{name} does not answer: {_last(output)}")
    if faults:
        raise Refused(f"{'; '.join(faults)}; start its service, or let the engine's user reach it")
    raise Refused(f"{' and '.join(names)}: not on this machine; install one, or correct engine.runtime")


def words(
    runtime: Runtime,
    name: str,
    container: Mapping[str, Any],
    argv: Sequence[str],
    environment: Iterable[str],
    gpus: bool,
) -> list[str]:
    """The command line that runs `argv` in the container, with the variables of those names."""
    args, entry = [str(word) for word in container.get("args") or ()], container.get("entry", "program")
    found = [runtime.program, "run", "--rm", "--name", name, "--pull=never", "--network=host"]
    found += ["--log-driver=none", f"--shm-size={SHARED_MEMORY}", "--security-opt=no-new-privileges"]
    for variable in sorted(set(environment)):
        found += ["--env", variable]
    for volume in container.get("volumes") or ():
        found += ["--volume", str(volume)]
    if gpus and not _CHOOSES_GPUS.search(" ".join(args)):
        found += ["--device", "nvidia.com/gpu=all"] if runtime.podman else ["--gpus", "all"]
    if entry == "program":
        found += ["--entrypoint", argv[0]]
    # The user's flags come after ours: of two the last one counts.
    return [*found, *args, str(container["image"]), *(argv if entry == "argv" else argv[1:])]


def has_gpus() -> bool:
    """Whether this machine has GPUs of NVIDIA with a driver."""
    return os.path.exists(_GPU)


def remove(runtime: Runtime, name: str, run: Ask = ask) -> None:
    """Kill the container of that name and remove it; nothing to do where there is none. Raises Refused."""
    listed, output = (runtime.program, "ps", "--all", "--quiet", "--filter", f"name=^{name}$"), ""
    try:
        for _ in range(_LOOKS):
            run((runtime.program, "kill", name))  # podman's rm would ask it to end, and wait
            output = run((runtime.program, "rm", "--force", "--volumes", name))[1]
            if run(listed) == (0, ""):
                return
            time.sleep(_GONE_SECONDS)  # noqa: TID251 - one that --rm removes is a moment in between
    except (OSError, TimeoutError) as error:
        output = str(error)
    raise Refused(f"container {name} cannot be removed: {_last(output)}")


def fetch(runtime: Runtime, image: str, tell: Callable[[str], None], run: Ask = ask) -> None:
    """Fetch the image unless it is there. `tell` gets each line of how far that is. Raises Refused."""
    try:
        if run((runtime.program, "image", "inspect", image))[0] == 0:
            return
        tell(f"{image} is fetched")
        process = subprocess.Popen(
            [runtime.program, "pull", image],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except (OSError, TimeoutError) as error:
        raise Refused(f"image {image}: {error}") from None
    lines: list[str] = []
    for line in process.stdout or ():
        if line.strip():
            lines = [*lines[-20:], line.strip()]
            tell(f"{image}: {lines[-1][:200]}")
    if process.wait() != 0:
        raise Refused(f"image {image}: {why(lines)}")


def why(lines: Sequence[str]) -> str:
    """Why an image could not be fetched, by what the runtime wrote, and what to do.

    >>> why(["Error response from daemon: manifest for engine:2 not found: manifest unknown"])
    'there is none; correct engine.image (manifest for engine:2 not found: manifest unknown)'
    """
    said = "\n".join(lines)
    advice = next((text for sign, text in _FAULTS if re.search(sign, said, re.IGNORECASE)), "")
    last = re.sub(r"^(Error|Error response from daemon): *", "", lines[-1])[:300] if lines else "no output"
    return f"{advice} ({last})" if advice else last


def prepared(
    name: str,
    container: Mapping[str, Any],
    argv: Sequence[str],
    environment: Iterable[str],
    tell: Callable[[str], None],
) -> list[str]:
    """The command line that starts the engine, once nothing is in its way. Raises Refused."""
    runtime = find(container.get("runtime", ""))
    remove(runtime, name)
    fetch(runtime, container["image"], tell)
    return words(runtime, name, container, argv, environment, has_gpus())


def checks(container: Mapping[str, Any], run: Ask = ask) -> list[Check]:
    """Whether this machine can run the container at all."""
    try:
        runtime = find(container.get("runtime", ""), run)
    except Refused as error:
        return [Check("container", False, str(error), True)]
    found = [Check("container", True, f"{runtime.program} answers")]
    if not has_gpus():
        return found
    if runtime.podman:
        there = any(glob.glob(place) for place in _SPECIFICATIONS)
        lack = "no device of CDI is described: run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    else:
        there = shutil.which("nvidia-container-runtime-hook") is not None
        lack = "the NVIDIA container toolkit is not on this machine: install nvidia-container-toolkit"
    text = "containers get the GPUs" if there else f"{lack}; containers would not get the GPUs"
    return [*found, Check("container-gpus", there, text)]


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def main(arguments: Sequence[str] | None = None) -> int:
    """Become ``docker run``, or remove a container."""
    about, _, examples = (__doc__ or "").partition("Examples:")
    parser = argparse.ArgumentParser(
        prog="node_container.py",
        description=about.strip(),
        epilog="examples:" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True)
    start = what.add_parser("run", help="become the engine's container")
    start.add_argument("name", help="the container's name")
    start.add_argument("description", help="the container, with its argv and environment, in JSON")
    end = what.add_parser("remove", help="remove a container")
    end.add_argument("name", help="the container's name")
    end.add_argument("--runtime", default="", choices=("", *RUNTIMES), help="docker or podman (what is here)")
    options = parser.parse_args(arguments)

    def tell(text: str) -> None:
        print(f"node-container: {text}", file=sys.stderr, flush=True)

    try:
        if options.what == "remove":
            remove(find(options.runtime), options.name)
            return 0
        given = json.loads(options.description)
        argv = prepared(options.name, given, given["argv"], given["environment"], tell)
        tell(f"{given['image']} starts in {argv[0]}")
        os.execvp(argv[0], argv)  # noqa: S606 - the runtime that runs the pool's engine
    except (Refused, OSError) as error:
        tell(str(error))
    return 1


if __name__ == "__main__":
    sys.exit(main())
