"""Runs an engine in a container on its node, with docker or podman, and takes the container away.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
What ends an engine ends the process that started the container, which may be killed at any instant and then
leaves the container running. So a container has the name of its node: one that was left is removed before the
next is started, and the code that ends a node removes its container afterwards.

A container is described as `cloud.ports.Container` is, as an object in JSON: {"image", "runtime", "args",
"volumes", "entry"}. It has the network of its node, no log of its own (its output goes to the process that
started it), and of the environment the variables that are named: their values stand in no command line.

Source: docs.docker.com/reference/cli/docker and docs.podman.io (run, rm, pull, image inspect), the container
toolkit of NVIDIA (--gpus for docker, CDI's nvidia.com/gpu for podman). Run with podman 4.3.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cloud.node_boot import Boot
from cloud.node_checks import ENGINE_HOME, LOCAL_DISK, Ask, Check, ask, caches_of, last
from cloud.node_metadata import Refused

NAME = "orchestrator-engine"  # on a machine that is one node
RUNTIMES = ("docker", "podman")
_GPU = "/dev/nvidiactl"
_SPECIFICATIONS = ("/etc/cdi", "/run/cdi")
_GONE_SECONDS = 0.25
_HANGS = 3
_FAULTS = (
    ("no space left", "the disk is full; give a larger one"),
    ("no such host|lookup|time|refused|reach|reset|EOF", "the registry does not answer"),
    ("denied|unauth|forbidden|credential", "the registry refuses it; log in on the node"),
    ("short-name|not found|unknown", "there is none; correct engine.image"),
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
        except OSError as error:
            status, output = 1, str(error)
        if status == 0:
            return Runtime(name, "podman" in output.lower())
        faults.append(f"{name} does not answer: {last(output)}")
    if faults:
        raise Refused(f"{'; '.join(faults)}; start its service")
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
    entry = container["entry"]
    # Processes of an engine exchange tensors in shared memory, where the usual 64 MiB end them.
    found = [runtime.program, "run", "--rm", "--name", name, "--pull=never", "--network=host"]
    found += ["--log-driver=none", "--shm-size=16g", "--security-opt=no-new-privileges"]
    for variable in sorted(set(environment)):
        found += ["--env", variable]
    for volume in container["volumes"]:
        found += ["--volume", volume]
    if gpus and not re.search("--gpus|nvidia", " ".join(container["args"])):
        found += ["--device", "nvidia.com/gpu=all"] if runtime.podman else ["--gpus", "all"]
    if entry == "program":
        found += ["--entrypoint", argv[0]]
    # The user's flags come after ours: of two the last one counts.
    return [*found, *container["args"], container["image"], *(argv if entry == "argv" else argv[1:])]


def has_gpus() -> bool:
    """Whether this machine has GPUs of NVIDIA with a driver."""
    return os.path.exists(_GPU)


def remove(runtime: Runtime, name: str, run: Ask = ask) -> None:
    """Kill the container of that name and remove it; nothing to do without one. Raises Refused, OSError."""
    said, hung = "", 0
    for _ in range(80):
        try:
            run((runtime.program, "kill", name))  # podman's rm would ask it to end, and wait
            said = run((runtime.program, "rm", "--force", "--volumes", name))[1]  # those without a name
            if run((runtime.program, "ps", "--all", "--quiet", "--filter", f"name=^{name}$")) == (0, ""):
                return
        except TimeoutError as error:  # one that hangs is ended, and another may get through
            said, hung = str(error), hung + 1
            if hung == _HANGS:
                break
        time.sleep(_GONE_SECONDS)  # noqa: TID251 - one that --rm removes is a moment in between
    raise Refused(f"container {name} cannot be removed: {last(said)}")


def there(runtime: Runtime, image: str, run: Ask = ask) -> bool:
    """Whether the image is on this machine. Raises OSError."""
    return run((runtime.program, "image", "inspect", image))[0] == 0


def fetch(runtime: Runtime, image: str, tell: Callable[[str], None], run: Ask = ask) -> None:
    """Fetch the image unless it is there. `tell` gets each line of that. Raises Refused, OSError."""
    if there(runtime, image, run):
        return
    tell(f"{image} is fetched")
    process = subprocess.Popen(
        [runtime.program, "pull", image],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
    )
    lines: list[str] = []
    for line in filter(str.strip, process.stdout or ()):
        lines = [*lines[-20:], line.strip()]
        tell(f"{image}: {lines[-1][:200]}")
    if process.wait():
        raise Refused(f"image {image}: {why(lines, image)}")


def why(lines: Sequence[str], image: str) -> str:
    """Why an image could not be fetched, by what the runtime wrote, and what to do.

    >>> why(["Error response from daemon: manifest for engine:2 not found: manifest unknown"], "engine:2")
    'there is none; correct engine.image (manifest for engine:2 not found: manifest unknown)'
    """
    said, name = "\n".join(lines), re.split("@|:[^/]*$", image)[0]
    plain = said.replace(name, "")  # names have words such as "runtime"
    advice = next((text for sign, text in _FAULTS if re.search(sign, plain, re.IGNORECASE)), "")
    reason = last(re.sub("Error( response from daemon)?: *", "", said))
    return f"{advice} ({reason})" if advice else reason


def prepared(
    name: str, container: Mapping[str, Any], argv: Sequence[str], environment: Iterable[str], boot: Boot
) -> list[str]:
    """The command line that starts the engine, once nothing is in its way and its image is here, which is a
    stage of the start. Raises Refused, OSError."""
    runtime = find(container["runtime"])
    remove(runtime, name)
    boot.stage("image", container["image"])
    fetch(runtime, container["image"], lambda text: boot.stage("image", text))
    return words(runtime, name, container, argv, environment, has_gpus())


def checks(given: Mapping[str, Any], _: Mapping[str, str], run: Ask = ask) -> list[Check]:
    """Whether this machine can run a container at all. `given`: see `cloud.node_start`."""
    try:
        runtime = find(given["container"]["runtime"], run)
    except Refused as error:
        return [Check("container", False, str(error), True)]
    found = [Check("container", True, f"{runtime.program} answers")]
    if not has_gpus():
        return found
    if runtime.podman:
        able = any(map(os.path.isdir, _SPECIFICATIONS))
        lack = "run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    else:
        able = shutil.which("nvidia-container-runtime-hook") is not None
        lack = "install nvidia-container-toolkit"
    text = "containers get the GPUs" if able else f"containers get no GPUs; {lack} in the image"
    return [*found, Check("container-gpus", able, text)]


def command(
    given: Mapping[str, Any], argv: Sequence[str], model: str, environment: Mapping[str, str], boot: Boot
) -> list[str]:
    """The command line that runs an engine of `cloud.node_start`. Its home, the local disk and its weights
    are in the container where they are on the node. Raises Refused."""
    home, container = environment.get("HOME") or ENGINE_HOME, given["container"]
    own = [home, *([LOCAL_DISK] if os.path.ismount(LOCAL_DISK) else [])]
    places = [f"{place}:{place}" for place in own]
    if model and not model.startswith(tuple(f"{place}/" for place in own)):
        places.append(f"{model}:{model}:ro")
    names = {*given["env"], *given["secrets"], *caches_of(home)}
    described = {**container, "volumes": [*places, *container["volumes"]]}
    return prepared(NAME, described, argv, names, boot)


if __name__ == "__main__":
    remove(find(), NAME)  # after the engine's end
