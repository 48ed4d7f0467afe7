"""What a node looks at before it starts its engine: a fault is reported at once, in words, with what to do.

A check that fails for certain stops the start; a doubt is reported and the start goes on. Standard library
and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cloud.node_metadata import Refused

ENGINE_HOME = "/var/lib/orchestrator-engine"
LOCAL_DISK = "/mnt/orchestrator"
GIB = 2**30
_CLOCK_OFF = 30.0  # s; node reports are refused from 60 s on, signatures from 5 min on
_GPU_ROW = re.compile(r".+, *\d+(\.\d+)+ *")  # name and driver; warnings of nvidia-smi stand among them
_ASK_SECONDS = 60.0  # an image's disk is slow when it is first read

Ask = Callable[[Sequence[str]], "tuple[int, str]"]
"""Runs a command: exit status and what it printed. Raises OSError (not there), TimeoutError."""


class Check(NamedTuple):
    """What was seen. `fatal`: the engine cannot start like this."""

    name: str
    ok: bool
    text: str
    fatal: bool = False


def ask(words: Sequence[str]) -> tuple[int, str]:
    """Run a command for a while. See `Ask`."""
    process = subprocess.Popen(
        list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output = process.communicate(timeout=_ASK_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()  # one that hangs in the driver cannot be waited for
        raise TimeoutError(f"no answer within {_ASK_SECONDS:g} s") from None
    return process.returncode, output.decode("utf-8", "replace")


def environment_for(program: str, given: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: `given` wins over ours, and ours over `base`.

    PATH begins with the program's own directory, and that of the file to which a link leads, one of which is
    the virtual environment's: kernels that are compiled on the node (FlashInfer, Triton) look there for
    ninja. What is downloaded goes to the local disk
    where there is one; what was compiled stays on the root volume, which outlives a stop.
    """
    ours = caches_of(base.get("HOME") or ENGINE_HOME)
    # The path to these modules is not the engine's business.
    found = {**{name: value for name, value in base.items() if name != "PYTHONPATH"}, **ours, **given}
    path = [found.get("PATH") or os.defpath]
    full = shutil.which(program, path=path[0])
    if full is not None:
        places = (os.path.abspath(full), os.path.realpath(full))
        path[:0] = dict.fromkeys(map(os.path.dirname, places))
    if not found.get("CUDA_HOME"):
        compiler = shutil.which("nvcc", path=os.pathsep.join(path))
        cuda = os.path.dirname(os.path.dirname(os.path.realpath(compiler))) if compiler else "/usr/local/cuda"
        if os.path.isfile(f"{cuda}/bin/nvcc"):
            found["CUDA_HOME"] = cuda
    if found.get("CUDA_HOME"):
        path.append(f"{found['CUDA_HOME']}/bin")
    found["PATH"] = os.pathsep.join(path)
    return found


def caches_of(home: str) -> dict[str, str]:
    """Where an engine keeps what it downloads and compiles, by the variables that say so."""
    kept = f"{home}/.cache"
    return {
        "HF_HOME": downloads_of(home),
        "VLLM_CACHE_ROOT": f"{kept}/vllm",
        "TRITON_CACHE_DIR": f"{kept}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{kept}/torchinductor",
        "FLASHINFER_WORKSPACE_BASE": home,
        "CUDA_CACHE_PATH": f"{kept}/nv",
    }


def disk_of(home: str) -> str:
    """Where downloads go: the local disk when it is mounted, else the engine's home."""
    return LOCAL_DISK if os.path.ismount(LOCAL_DISK) else home


def downloads_of(home: str) -> str:
    """Where Hugging Face's files go. A cache that came with the image or outlived a stop is used as it is."""
    cache = f"{home}/.cache/huggingface"
    return cache if os.path.isdir(f"{cache}/hub") else f"{disk_of(f'{home}/.cache')}/huggingface"


def check_driver(gpus: int, run: Ask) -> Check:
    """Whether the GPUs that the engine wants answer."""
    try:
        status, output = run(("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"))
    except TimeoutError as error:
        return Check("driver", False, f"nvidia-smi: {error}; the driver hangs: end the machine", True)
    except OSError:
        what = "nvidia-smi is not on this machine; use an image with the NVIDIA driver"
        return Check("driver", False, f"{what}, such as a Deep Learning Base AMI", True)
    if status != 0:
        what = f"nvidia-smi failed with status {status}: {last(output)}"
        return Check("driver", False, f"{what}; is the driver built for this kernel?", True)
    rows = [line.rpartition(",") for line in output.splitlines() if _GPU_ROW.fullmatch(line)]
    if len(rows) < gpus:
        what = f"the machine shows {len(rows)} GPUs and the engine wants {gpus}"
        return Check("driver", False, f"{what}; choose a larger instance type or less parallelism", True)
    return Check("driver", True, f"{len(rows)} x {rows[0][0].strip()}, driver {rows[0][2].strip()}")


def count_gpus(run: Ask) -> int:
    """How many GPUs the machine has. Raises Refused."""
    try:
        status, output = run(("nvidia-smi", "-L"))
    except (OSError, TimeoutError) as error:
        raise Refused(f"nvidia-smi -L: {error}") from None
    found = sum(line.startswith("GPU ") for line in output.splitlines())
    if status != 0 or not found:
        raise Refused(f"nvidia-smi -L: status {status}: {last(output)}")
    return found


def check_fabric(run: Ask, switches: str = "/dev/nvidia-nvswitch0") -> Check | None:
    """Whether the fabric manager runs, on machines whose GPUs are joined by switches (p4d, p5 and larger)."""
    if not os.path.exists(switches):
        return None
    try:
        _, state = run(("systemctl", "is-active", "nvidia-fabricmanager"))
    except (OSError, TimeoutError) as error:
        state = str(error)
    if state.strip() == "active":
        return Check("fabric", True, "nvidia-fabricmanager runs")
    what = f"nvidia-fabricmanager is {last(state)}: CUDA does not start on GPUs behind NVSwitches"
    return Check("fabric", False, f"{what}; install and enable the version of the driver")


def check_clock(imds: str, now: Callable[[], float]) -> Check | None:
    """Whether the clock is right, by the time that the metadata service states; None where it states none."""
    connection = http.client.HTTPConnection(urlsplit(imds).netloc, timeout=2.0)
    try:
        connection.request("GET", "/")
        stated = parsedate_to_datetime(connection.getresponse().getheader("Date") or "").timestamp()
    except (OSError, http.client.HTTPException, ValueError, TypeError, IndexError):
        return None
    finally:
        connection.close()
    off = now() - stated
    if abs(off) <= _CLOCK_OFF:
        return Check("clock", True, f"within {_CLOCK_OFF:g} s")
    return Check("clock", False, f"it is off by {off:+.0f} s; run chrony with the time of 169.254.169.123")


def check_disk(directory: str, wanted: float = 0.0) -> Check:
    """Whether what is downloaded finds room. `wanted`: bytes that are estimated to be needed."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Check("disk", False, f"{directory}: {error.strerror}")
    text = f"{free / GIB:.0f} GiB free in {directory}"
    if free < wanted:
        more = f"{text}, and the weights take about {wanted / GIB:.0f} GiB"
        return Check("disk", False, f"{more}; give a larger disk.size or a type with a local disk")
    return Check("disk", True, text)


def look(
    needs: Mapping[str, Any], seen: Sequence[Check], environment: Mapping[str, str], imds: str
) -> list[Check]:
    """Every check before an engine starts. `needs`: {"gpus", "vllm", "weights"}, see `cloud.node_start`;
    `seen`: what was seen of the program, or of the container that it is in."""
    gpus = int(needs.get("gpus", 0))
    found: list[Check | None] = [*seen]
    if gpus:
        found += [check_driver(gpus, ask), check_fabric(ask)]
    home = environment.get("HOME") or ENGINE_HOME
    lacks = not os.path.isdir(f"{environment.get('HF_HOME', home)}/hub")  # nothing was downloaded yet
    found.append(check_disk(disk_of(home), float(needs.get("weights", 0.0)) * lacks))
    found.append(check_clock(imds, time.time))  # noqa: TID251
    return [check for check in found if check is not None]


def last(output: str) -> str:
    """The last line of an output, which is where errors stand."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
