"""What a node looks at of an engine that is one of its own programs, before it starts it.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

from cloud.node_checks import Ask, Check, ask, last

OLDEST_VLLM = (0, 18)  # the first with --shutdown-timeout


def checks(given: Mapping[str, Any], environment: Mapping[str, str]) -> list[Check]:
    """Whether the program runs, and finds what it needs. `given`: see `cloud.node_start`."""
    needs, program, path = given.get("needs") or {}, given["argv"][0], environment["PATH"]
    runs, full = check_program(program, path), shutil.which(program, path=path)
    found = [runs]
    if needs.get("vllm") and runs.ok and full is not None:
        found.append(check_vllm(full, ask))
    return [*found, *(check_tools(environment) if needs.get("gpus") else ())]


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
        what = f"{python} has no vllm installed: {last(output)}"
        return Check("vllm", False, f"{what}; correct engine.executable or the image", True)
    version = last(output)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or "dev" in version:
        return Check("vllm", True, f"{version}, built from source: --shutdown-timeout must be known to it")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_VLLM:
        what = f"{version} does not know --shutdown-timeout"
        return Check("vllm", False, f"{what}; install 0.18 or newer in the image", True)
    return Check("vllm", True, version)


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
