"""Prints the part of requirements.lock that the installed program needs, without the tools of development.

    python tools/package/runtime_lock.py [--python-version 3.11] [EXTRA ...] > runtime.lock

Runs in the development environment, where everything of the lock is installed: the requirements of each
distribution are read there. Exit code: 0 printed, 1 something is missing from the lock.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def entries(lock: str) -> dict[str, str]:
    """The lock's entries by canonical name."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return {canonicalize_name(re.split(r"[=\[ ;]", b, maxsplit=1)[0]): b for b in blocks if b.strip()}


def needed(wanted: list[Requirement], python: str) -> set[str]:
    """The names of all distributions that the wanted ones need on Linux."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or ():
            following = Requirement(text)
            environments = [{"python_version": python, "extra": extra} for extra in ("", *requirement.extras)]
            if following.marker is None or any(following.marker.evaluate(e) for e in environments):
                waiting.append(following)
    return found


def main() -> int:
    """Print the lock; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python-version", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    parser.add_argument("extras", nargs="*")
    arguments = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = list(project["dependencies"])
    for extra in arguments.extras:
        texts += project["optional-dependencies"][extra]
    locked = entries((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    names = needed([Requirement(text) for text in texts], arguments.python_version)
    missing = sorted(names - set(locked))
    if missing:
        print(f"requirements.lock lacks {', '.join(missing)}; run make lock", file=sys.stderr)
        return 1
    print("".join(locked[name] for name in sorted(names)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
