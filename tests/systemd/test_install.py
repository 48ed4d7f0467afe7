"""tools/package/install.sh: into a system image, again, and out of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(120)]

SCRIPT = Path(__file__).parents[2] / "tools/package/install.sh"
CONFIG = "etc/spot-orchestrator/pool.toml"
UNIT = "usr/lib/systemd/system/spot-orchestrator.service"


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package holds."""
    folder = tmp_path_factory.mktemp("tree")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=60)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty system."""
    (tmp_path / "image" / "etc").mkdir(parents=True)
    return tmp_path / "image"


def install(image: Path, *words: str | Path) -> str:
    done = subprocess.run(
        [SCRIPT, "--root", image, *words],
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(image: Path) -> set[str]:
    return {str(file.relative_to(image)) for file in image.rglob("*")}


def test_installed_again_it_is_the_same_and_the_configuration_stays(tree: Path, image: Path) -> None:
    said = install(image, "--tree", tree)
    assert "systemctl enable --now spot-orchestrator-gateway spot-orchestrator" in said
    first = files(image)
    assert {UNIT, CONFIG, "usr/bin/orchestrator", "var/lib/spot-orchestrator-gateway"} <= first
    assert os.readlink(image / "usr/bin/orchestrator") == "/opt/spot-orchestrator/bin/orchestrator"
    assert "spot-orchestrator:x:" in (image / "etc/passwd").read_text(encoding="utf-8")
    (image / CONFIG).write_text("# mine\n", encoding="utf-8")
    (image / "opt/spot-orchestrator/left-over").touch()
    (image / UNIT).write_text("changed", encoding="utf-8")
    said = install(image, "--tree", tree)
    assert f"{image / CONFIG} stays as it is." in said
    assert (image / CONFIG).read_text(encoding="utf-8") == "# mine\n"
    assert (image / UNIT).read_bytes() == (tree / UNIT).read_bytes()
    assert {f for f in files(image) if not f.startswith("etc/") or "spot" in f} == {
        f for f in first if not f.startswith("etc/") or "spot" in f
    }


def test_removed_it_leaves_the_configuration_and_nothing_else_of_its_own(tree: Path, image: Path) -> None:
    install(image, "--tree", tree)
    (image / "var/lib/spot-orchestrator").mkdir()
    said = install(image, "--uninstall")
    assert "stay" in said
    left = {f for f in files(image) if "orchestrator" in f}
    assert left == {
        "etc/spot-orchestrator", CONFIG, "var/lib/spot-orchestrator", "var/lib/spot-orchestrator-gateway",
        "var/lib/spot-orchestrator-spend",
    }  # fmt: skip
    install(image, "--uninstall")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tree: Path, image: Path) -> None:
    said = install(image, "--tree", tree, "--dry-run")
    assert "would run: copy" in said
    assert "would run: systemd-sysusers" in said
    assert files(image) == {"etc"}
    install(image, "--tree", tree)
    before = files(image)
    assert f"would run: rm -rf {image}/opt/spot-orchestrator" in install(image, "--uninstall", "--dry-run")
    assert files(image) == before


def test_wrong_usage_is_told(image: Path) -> None:
    done = subprocess.run([SCRIPT, "--frobnicate"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, "--uninstall" in done.stdout) == (2, True)
    shutil.rmtree(image)
