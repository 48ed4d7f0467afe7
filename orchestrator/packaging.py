"""The guard of the package names: `orchestrator`, `cloud`, `policies` are plain, so others may use them too.

Two distributions that install the same top-level name write into one directory, and a project of that name
earlier on the path hides ours. Both would show as something odd much later, so `check_names` says it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

DISTRIBUTION: Final = "spot-orchestrator"
NAMES: Final = ("orchestrator", "cloud", "policies")

_REMEDY: Final = "install it in an environment of its own (make setup)"


def check_names(path: Sequence[str] | None = None) -> list[str]:
    """What is wrong with the owners of the three names, one sentence each; empty when all is well.

    Each name must be loaded from the directory that holds this package, and belong to this distribution only.
    An uninstalled source tree is fine. `path` is searched instead of `sys.path`. Standard library only, some
    milliseconds.
    """
    home = Path(__file__).resolve().parent.parent
    owners = name_owners(distributions() if path is None else distributions(path=list(path)))
    faults = []
    for name in NAMES:
        place = _place(name, path)
        strangers = sorted(set(owners[name]) - {DISTRIBUTION})
        if strangers:
            faults.append(f"the package name {name} also belongs to {', '.join(strangers)}; {_REMEDY}")
        elif len(owners[name]) > 1:
            faults.append(f"{DISTRIBUTION} is installed {len(owners[name])} times; {_REMEDY}")
        elif place is None:
            faults.append(f"the package {name} is missing beside {home / 'orchestrator'}; {_REMEDY}")
        elif place != home / name:
            faults.append(f"the package {name} is loaded from {place}, not from {home / name}; {_REMEDY}")
    return faults


def name_owners(installed: Iterable[Distribution]) -> dict[str, list[str]]:
    """The distributions that claim each of the names, one entry for each installation."""
    owners: dict[str, list[str]] = {name: [] for name in NAMES}
    seen: set[tuple[str, Path]] = set()
    for distribution in installed:
        title = distribution.metadata["Name"]
        # one directory may be on the path twice, as lib and lib64 are on some systems
        key = (title, Path(str(distribution.locate_file(""))).resolve())
        if key in seen:
            continue
        seen.add(key)
        for name in _claimed(distribution):
            owners[name].append(title)
    return owners


def _claimed(distribution: Distribution) -> set[str]:
    """The names among ours that a distribution installs, or that its editable source holds."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    found: set[str] = {name for name in NAMES if name in declared}
    for line in (distribution.read_text("RECORD") or "").splitlines():
        top, slash, _ = line.partition("/")
        if slash and top in NAMES:
            found.add(top)
    source = _editable_source(distribution)
    if source is not None:
        found |= {
            name for name in NAMES if any((source / d / name / "__init__.py").is_file() for d in ("", "src"))
        }
    return found


def _editable_source(distribution: Distribution) -> Path | None:
    """The directory of an editable install (PEP 610)."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if not origin.get("dir_info", {}).get("editable"):
            return None
        return Path(unquote(urlsplit(origin["url"]).path))
    except (ValueError, KeyError, AttributeError):
        return None


def _place(name: str, path: Sequence[str] | None) -> Path | None:
    """The directory from which a package would be loaded; None when there is none."""
    spec = PathFinder.find_spec(name, path)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent
