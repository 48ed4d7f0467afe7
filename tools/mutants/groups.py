"""Which files are mutated, and in which group each is counted."""

from __future__ import annotations

from pathlib import Path

GROUPS: dict[str, tuple[str, ...]] = {
    "policies": ("policies",),
    "gateway": ("orchestrator/gateway",),
    "loop": tuple(
        f"orchestrator/{room}" for room in ("loop", "journal", "lease", "costs", "metrics", "config")
    ),
    "adapters": ("cloud",),
}
"""The folders of each group. The other rooms show, start or play what these decide and do."""

LEFT_OUT = ("cloud/sim", "cloud/engines/simulated_server", "cloud/engines/replay")
"""Stand-ins: they play a cloud or an engine for tests, demos and benches."""


def group_of(file: str) -> str:
    """The group in which a file is counted."""
    return next(
        g for g, folders in GROUPS.items() if any(file.startswith(f"{folder}/") for folder in folders)
    )


def files(root: Path) -> dict[str, str]:
    """Every file that is mutated, relative to `root`, and its group."""
    found = {}
    for group, folders in GROUPS.items():
        for folder in folders:
            for path in sorted((root / folder).rglob("*.py")):
                name = path.relative_to(root).as_posix()
                if not any(name.startswith(f"{out}/") for out in LEFT_OUT):
                    found[name] = group
    return found
