"""Containers that cannot be removed at once are removed later; podman is played by a program."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cloud.local.containers import Containers
from cloud.ports import Container

PODMAN = Container(image="x:1", runtime="podman")


class Podman:
    """A program of that name, before the real one on the path. `left`: the containers that it knows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        script = f"""#!/bin/sh
cd {directory}
echo "$@" >> log
case "$1" in
version) [ ! -e broken ] || {{ echo 'the lock is taken'; exit 125; }};;
rm) rm -f "left/$4";;
ps) for last in "$@"; do :; done; ls left | grep -e "${{last#name=}}";;
esac
exit 0
"""
        (directory / "podman").write_text(script, encoding="utf-8")
        (directory / "podman").chmod(0o755)
        (directory / "left").mkdir()

    def holds(self, *names: str) -> None:
        for name in names:
            (self._directory / "left" / name).touch()

    @property
    def left(self) -> list[str]:
        return sorted(os.listdir(self._directory / "left"))

    def breaks(self) -> None:
        (self._directory / "broken").touch()

    def heals(self) -> None:
        (self._directory / "broken").unlink()


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Podman:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Podman(tmp_path)


async def test_one_that_could_not_be_removed_is_removed_when_it_is_tried_again(podman: Podman) -> None:
    containers = Containers("c1")
    podman.holds("orchestrator-c1-i-1")
    podman.breaks()
    containers.remove("i-1", PODMAN)
    await containers.gone("i-1")
    assert podman.left == ["orchestrator-c1-i-1"]
    podman.heals()
    containers.retry()
    await containers.gone("i-1")
    assert podman.left == []
    podman.holds("orchestrator-c1-i-1")
    containers.retry()
    await containers.close()
    assert podman.left == ["orchestrator-c1-i-1"]  # it has gone once, so this is a new one


async def test_a_node_that_starts_again_is_not_removed_for_what_it_left(podman: Podman) -> None:
    containers = Containers("c1")
    podman.breaks()
    containers.remove("i-1", PODMAN)
    await containers.gone("i-1")
    podman.heals()
    containers.command("i-1", PODMAN, ["engine"], [])
    podman.holds("orchestrator-c1-i-1")
    containers.retry()
    await containers.close()
    assert podman.left == ["orchestrator-c1-i-1"]


async def test_a_sweep_takes_all_of_its_cloud_and_a_node_waits_for_it(podman: Podman) -> None:
    containers = Containers("c1")
    podman.holds("orchestrator-c1-i-1", "orchestrator-c1-i-2", "orchestrator-c10-i-1", "another")
    containers.sweep([PODMAN, PODMAN])
    await containers.gone("i-9")
    assert podman.left == ["another", "orchestrator-c10-i-1"]
    await containers.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
