"""What a node looks at before it starts its engine: a fault is told in words, with what to do, at once.

A check that fails for certain stops the start; a doubt is told and the start goes on. Standard library and
its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
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

OLDEST_VLLM = (0, 18)  # the first with --shutdown-timeout
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
    home = base.get("HOME") or ENGINE_HOME
    kept = f"{home}/.cache"
    ours = {
        "HF_HOME": downloads_of(home),
        "VLLM_CACHE_ROOT": f"{kept}/vllm",
        "TRITON_CACHE_DIR": f"{kept}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{kept}/torchinductor",
        "FLASHINFER_WORKSPACE_BASE": home,
        "CUDA_CACHE_PATH": f"{kept}/nv",
    }
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


def disk_of(home: str) -> str:
    """Where downloads go: the local disk when it is mounted, else the engine's home."""
    return LOCAL_DISK if os.path.ismount(LOCAL_DISK) else home


def downloads_of(home: str) -> str:
    """Where Hugging Face's files go. A cache that came with the image or outlived a stop is used as it is."""
    cache = f"{home}/.cache/huggingface"
    return cache if os.path.isdir(f"{cache}/hub") else f"{disk_of(f'{home}/.cache')}/huggingface"


def check_program(program: str, path: str) -> Check:
    """Whether this user can execute it, its interpreter included."""
    full = shutil.which(program, path=path)
    if full is None:
        if os.path.exists(program):
            what = f"{program} cannot be executed by the engine's user, who has no rights"
            return Check("engine", False, f"{what}; make it and all directories above it readable", True)
        what = f"{program} is not on this machine, or below a directory that others may not read"
        return Check("engine", False, f"{what}; install it in the image, or correct engine.executable", True)
    interpreter = interpreter_of(full)
    if interpreter and not os.access(interpreter, os.X_OK):
        what = f"{full} needs {interpreter}, which is not there or which the engine's user may not execute"
        return Check("engine", False, f"{what}; a virtual environment's Python must not be below /root", True)
    return Check("engine", True, full)


def interpreter_of(program: str) -> str:
    """The interpreter that a script names in its first line; empty for a binary."""
    try:
        with open(program, "rb") as file:
            line = file.readline(512)
    except OSError:
        return ""
    words = line[2:].decode("utf-8", "replace").split() if line.startswith(b"#!") else []
    return words[0] if words else ""


def check_vllm(program: str, run: Ask) -> Check:
    """Whether the vLLM that the program belongs to is new enough."""
    python = interpreter_of(program)
    if "python" not in os.path.basename(python):
        return Check("vllm", True, f"its version is not known: {program} is no script of Python")
    try:
        status, output = run((python, "-c", "import importlib.metadata as m; print(m.version('vllm'))"))
    except (OSError, TimeoutError) as error:
        return Check("vllm", False, f"its version cannot be read: {python}: {error}")
    if status != 0:
        what = f"{python} has no vllm installed: {_last(output)}"
        return Check("vllm", False, f"{what}; correct engine.executable or the image", True)
    version = _last(output)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or "dev" in version:
        return Check("vllm", True, f"{version}, built from source: --shutdown-timeout must be known to it")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_VLLM:
        what = f"{version} does not know --shutdown-timeout"
        return Check("vllm", False, f"{what}; install 0.18 or newer in the image", True)
    return Check("vllm", True, version)


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
        what = f"nvidia-smi failed with status {status}: {_last(output)}"
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
        raise Refused(f"nvidia-smi -L: status {status}: {_last(output)}")
    return found


def check_tools(environment: Mapping[str, str]) -> list[Check]:
    """What kernels are compiled with on the node. An engine may do without, so these are doubts."""
    path = environment["PATH"]
    compilers = (environment.get("CC"), "cc", "gcc", "clang")
    places = {
        "compiler": next(filter(None, (shutil.which(c, path=path) for c in compilers if c)), None),
        "ninja": shutil.which("ninja", path=path),
        "cuda": environment.get("CUDA_HOME"),
    }
    lacks = {
        "compiler": "no C compiler is on PATH; install gcc in the image",
        "ninja": "no ninja is on PATH; install it beside vllm, by pip",
        "cuda": "no nvcc was found; install the CUDA toolkit, or set CUDA_HOME in engine.env",
    }
    advice = "without it, kernels that vLLM compiles on the node fail"
    return [Check(name, bool(at), at or f"{lacks[name]}: {advice}") for name, at in places.items()]


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
    what = f"nvidia-fabricmanager is {_last(state)}: CUDA does not start on GPUs behind NVSwitches"
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


def look(needs: Mapping[str, Any], program: str, environment: Mapping[str, str], imds: str) -> list[Check]:
    """Every check before an engine starts. `needs`: {"gpus", "vllm", "weights"}, see `cloud.node_start`."""
    gpus = int(needs.get("gpus", 0))
    runs, full = check_program(program, environment["PATH"]), shutil.which(program, path=environment["PATH"])
    found: list[Check | None] = [runs]
    if needs.get("vllm") and runs.ok and full is not None:
        found.append(check_vllm(full, ask))
    if gpus:
        found += [check_driver(gpus, ask), check_fabric(ask), *check_tools(environment)]
    home = environment.get("HOME") or ENGINE_HOME
    lacks = not os.path.isdir(f"{environment.get('HF_HOME', home)}/hub")  # nothing was downloaded yet
    found.append(check_disk(disk_of(home), float(needs.get("weights", 0.0)) * lacks))
    found.append(check_clock(imds, time.time))  # noqa: TID251
    return [check for check in found if check is not None]


def _last(output: str) -> str:
    """The last line of an output, which is where errors stand."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
