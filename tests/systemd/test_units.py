"""The units as systemd reads them: sound, closed, and alike where they have to be."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from orchestrator.config.tables.gateway import GatewayTable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "systemd"
UNITS = sorted((FOLDER / "system").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
DAEMON, GATEWAY = "spot-orchestrator.service", "spot-orchestrator-gateway.service"
MOST_EXPOSED = 1.5

Lines = dict[str, list[str]]


def settings(unit: Path, section: str) -> Lines:
    """One section of a unit: a key may be given several times."""
    found: Lines = {}
    inside = False
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line == f"[{section}]"
        elif inside and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def service(name: str) -> Lines:
    return settings(FOLDER / "system" / name, "Service")


@pytest.fixture
def runnable(tmp_path: Path) -> list[Path]:
    """Copies whose program exists here: systemd looks for it."""
    copies = []
    for unit in UNITS:
        text = re.sub(r"(?m)^(Exec\w+)=\S+", r"\1=/bin/true", unit.read_text(encoding="utf-8"))
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(text, encoding="utf-8")
    return copies


@pytest.mark.debian("systemd-analyze", package="systemd")
def test_systemd_finds_nothing_wrong(runnable: list[Path]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *runnable], capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if "spot-orchestrator" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.debian("systemd-analyze", package="systemd")
@pytest.mark.parametrize("name", [DAEMON, GATEWAY])
def test_the_exposure_score_is_low(name: str, runnable: list[Path]) -> None:
    (unit,) = [copy for copy in runnable if copy.name == name]
    threshold = f"--threshold={round(MOST_EXPOSED * 10)}"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", threshold, unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    (score,) = re.findall(rf"Overall exposure level for {re.escape(name)}: ([\d.]+)", done.stdout)
    assert (done.returncode, float(score) <= MOST_EXPOSED) == (0, True), done.stdout


@pytest.mark.debian("systemd-analyze", package="systemd")
def test_an_open_unit_would_be_found(tmp_path: Path) -> None:
    """The gate can fail."""
    unit = tmp_path / DAEMON
    unit.write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", str(unit)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0


@pytest.mark.debian("systemd-sysusers", "systemd-tmpfiles", package="systemd")
def test_the_users_and_directories_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for kind, *words in (["sysusers", "systemd-sysusers"], ["tmpfiles", "systemd-tmpfiles", "--create"]):
        file = FOLDER / f"{kind}.d" / "spot-orchestrator.conf"
        done = subprocess.run(
            [*words, f"--root={tmp_path}", file], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    made = (tmp_path / "etc" / "passwd").read_text(encoding="utf-8")
    for name in (DAEMON, GATEWAY):
        assert f"\n{service(name)['User'][0]}:x:" in f"\n{made}"
    shared = tmp_path / service(DAEMON)["ReadWritePaths"][0].lstrip("/")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2750


def test_both_services_live_in_the_same_sandbox() -> None:
    def sandbox(name: str) -> str:
        text = (FOLDER / "system" / name).read_text(encoding="utf-8")
        return text.partition("# the sandbox")[2].partition("\n")[2].partition("[Install]")[0]

    assert sandbox(DAEMON) == sandbox(GATEWAY)
    assert "ProtectSystem=strict" in sandbox(DAEMON)


def test_both_are_watched_and_come_back_for_ever() -> None:
    for name in (DAEMON, GATEWAY):
        lines = service(name)
        assert lines["Type"] == ["notify"]
        assert lines["WatchdogSec"]
        assert lines["Restart"] == ["always"]
        unit = settings(FOLDER / "system" / name, "Unit")
        assert unit["StartLimitIntervalSec"] == ["0"], "a service that gave up would stay down"


def test_the_gateway_has_longer_to_stop_than_its_requests() -> None:
    (minutes,) = re.findall(r"^(\d+)min$", service(GATEWAY)["TimeoutStopSec"][0])
    table = GatewayTable()
    assert int(minutes) * 60 > table.linger + table.drain_timeout


def test_every_line_of_a_unit_has_its_why() -> None:
    """README.md names every key that a unit sets."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    keys = {
        key for unit in UNITS for section in ("Unit", "Service", "Socket") for key in settings(unit, section)
    }
    obvious = {"Description", "Documentation"}
    assert {key for key in keys - obvious if f"`{key}" not in text} == set()


def test_the_example_says_what_the_units_say() -> None:
    """Paths and addresses stand in the configuration and in the units; they must be the same."""
    text = (FOLDER / "pool.toml").read_text(encoding="utf-8")
    listens = settings(FOLDER / "system" / "spot-orchestrator-gateway.socket", "Socket")["ListenStream"]
    for listen in listens:
        assert f'"{listen}"' in text
    reload_words = service(DAEMON)["ExecReload"][0].split()
    assert f'socket = "{reload_words[reload_words.index("--socket") + 1]}"' in text
    assert f'state_dir = "/var/lib/{service(DAEMON)["StateDirectory"][0]}"' in text
    assert f'targets_file = "{service(DAEMON)["ReadWritePaths"][0]}/' in text


def test_the_gateway_may_write_what_it_spends_and_nothing_else() -> None:
    text = (FOLDER / "pool.toml").read_text(encoding="utf-8")
    (place,) = service(GATEWAY)["ReadWritePaths"]
    assert f'spend_file = "{place}/' in text
    assert f'usage_file = "{place}/' in text
    made = (FOLDER / "tmpfiles.d" / "spot-orchestrator.conf").read_text(encoding="utf-8")
    # the daemon reads it by its group, which files take from the directory
    assert f"d {place} 2750 {service(GATEWAY)['User'][0]} {service(DAEMON)['Group'][0]} -" in made
    assert service(GATEWAY)["UMask"] == ["0027"]


def test_keys_of_providers_come_as_credentials() -> None:
    given = service(GATEWAY)["LoadCredential"]
    assert {"anthropic-key", "openai-key"} <= set(given)
    assert not {"anthropic-key", "openai-key"} & set(service(DAEMON)["LoadCredential"])


def test_only_the_group_of_the_daemon_may_control_the_gateway() -> None:
    socket = settings(FOLDER / "system" / "spot-orchestrator-gateway.socket", "Socket")
    assert socket["SocketGroup"] == service(DAEMON)["Group"]
    assert socket["SocketMode"] == ["0660"]
    assert service(GATEWAY)["User"] != service(DAEMON)["User"]
