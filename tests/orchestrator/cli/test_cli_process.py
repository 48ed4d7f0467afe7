"""The command line as a process: what it imports, how it starts servers, how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import main
from orchestrator.config.load import Config
from orchestrator.demo.options import DemoOptions

ROOT = Path(__file__).parents[3]

HEAVY = ("aiohttp", "boto3", "botocore", "orjson", "prometheus_client", "pydantic", "sqlite3", "structlog")
# What colours a terminal, and what only some configurations and commands use.
UNUSED_BY_SERVERS = (
    *("rich", "pygments", "colorama", "cyclopts", "matplotlib", "numpy", "highspy"),
    *("boto3", "botocore", "psycopg", "genai_prices"),
)

IMPORTS = """
import json, sys
from orchestrator.__main__ import main
code = main(sys.argv[1:])
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "modules": modules}), file=sys.stderr)
"""


def imported(*arguments: str) -> dict[str, Any]:
    """The exit code of a command and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 4),
        (["nodes"], 0),
        (["plan"], 0),
        (["events"], 0),
        (["node", "i-0c41"], 0),
        (["pause"], 0),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_reading_commands_import_nothing_heavy(arguments: list[str], code: int, api: Any) -> None:
    found = imported(*arguments, "--socket", str(api.socket))
    assert found["code"] == code
    assert set(HEAVY) & set(found["modules"]) == set()


@pytest.mark.slow
def test_json_does_not_import_the_tables(api: Any) -> None:
    assert "rich" not in imported("status", "-o", "json", "--socket", str(api.socket))["modules"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    found = imported(*arguments)
    assert found["code"] == 0
    assert set(HEAVY) & set(found["modules"]) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("orchestrator.daemon.service", ()),
        ("orchestrator.gateway.app", ("pydantic",)),
        ("cloud.local.server", ("orchestrator",)),
        ("cloud.engines.simulated_server.process", ("orchestrator", "policies", "pydantic", "sqlite3")),
    ],
)
def test_a_server_imports_nothing_that_it_does_not_need(module: str, others: tuple[str, ...]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert {*UNUSED_BY_SERVERS, *others} & set(json.loads(done.stdout)) == set()


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(api: Any) -> None:
    # many lines, so that the pipe breaks while they are written
    api.events = [api.events[0] | {"seq": number, "text": "x" * 500} for number in range(2000)]
    command = f"'{sys.executable}' -m orchestrator events -n 2000 --socket {api.socket} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), [(["events", "-f"], 0), (["status", "-w"], 0)])
def test_ctrl_c_ends_watching_without_a_word(arguments: list[str], code: int, api: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments, "--socket", str(api.socket)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()  # it has started to watch
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (code, "")


@pytest.mark.slow
def test_colour_is_off_in_a_pipe(api: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "status", "--socket", str(api.socket)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    assert done.returncode == 4
    assert "\x1b" not in done.stdout


def test_interrupted_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrator.api.client import ControlClient

    def interrupt(self: ControlClient, *, pool: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ControlClient, "status", interrupt)
    assert main(["status", "--socket", "x"]) == 130
    assert capsys.readouterr().err == ""


# Commands that start servers: the servers themselves are replaced


@pytest.fixture
def config_file(short_dir: Path) -> Path:
    file = short_dir / "pool.toml"
    file.write_text(
        "[daemon]\nlog_format = 'json'\n[pool.llama]\nreplicas = 4\ngateway.listen = '127.0.0.1:0'\n"
    )
    return file


@pytest.fixture
def quiet_logs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Keeps commands from taking over the logging of the tests; what they asked for."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr("orchestrator.logs.configure_logging", lambda *given: asked.append(given))
    return asked


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_run_starts_the_daemon_and_returns_its_code(
    config_file: Path, quiet_logs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Config] = []

    async def run_daemon(config: Config) -> int:
        started.append(config)
        return 7

    replace_module(monkeypatch, "orchestrator.daemon.service", run_daemon=run_daemon)
    assert main(["run", "--config", str(config_file), "--log-level", "debug"]) == 7
    assert started[0].wanted.replicas == 4
    assert quiet_logs == [("json", "debug")]


@pytest.mark.parametrize("error", ["start", "cloud", "system"])
def test_run_says_in_one_line_why_the_daemon_cannot_start(
    error: str,
    config_file: Path,
    quiet_logs: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cloud.errors import Denied
    from orchestrator.api.listeners import StartError

    raised = {"start": StartError("reason"), "cloud": Denied("reason"), "system": OSError("reason")}[error]

    async def run_daemon(config: Config) -> int:
        raise raised

    replace_module(monkeypatch, "orchestrator.daemon.service", run_daemon=run_daemon)
    assert main(["run", "-c", str(config_file)]) == 1
    assert capsys.readouterr().err == "orchestrator: the daemon cannot run: reason\n"


def test_gateway_serves_with_the_settings_of_the_file(
    config_file: Path,
    quiet_logs: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from orchestrator.gateway.config import GatewayConfig, GatewayError

    served: list[GatewayConfig] = []

    def serve(config: GatewayConfig, _: object) -> None:
        served.append(config)
        if len(served) == 2:
            raise GatewayError("port 8000 is in use; choose another")

    replace_module(monkeypatch, "orchestrator.gateway.app", serve=serve)
    assert main(["gateway", "--config", str(config_file)]) == 0
    assert (served[0].host, served[0].port, served[0].pools[0].name) == ("127.0.0.1", 0, "llama")
    assert served[0].socket == config_file.parent / "state/gateway.sock"
    assert main(["gateway", "--config", str(config_file)]) == 1
    assert capsys.readouterr().err.startswith("orchestrator: the gateway cannot run: port 8000 is in use")


def test_local_cloud_serves_where_the_daemon_looks(
    config_file: Path,
    quiet_logs: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served: list[Any] = []

    async def serve(config: Any, clock: Any) -> None:
        served.append(config)

    monkeypatch.setattr("cloud.local.server.serve", serve)
    market = config_file.parent / "market.json"
    market.write_text('{"state_dir": "elsewhere", "seed": 3, "boot_delay": 5}')
    arguments = ["local-cloud", "--config", str(config_file)]
    assert main([*arguments, "--speed", "60"]) == 0
    assert main([*arguments, "--market", str(market), "--seed", "9"]) == 0
    first, second = served
    assert {first.socket_path, second.socket_path} == {config_file.parent / "state/cloud/cloud.sock"}
    assert (first.speed, second.speed, second.seed, second.boot_delay) == (60.0, 1.0, 9, 5.0)
    market.write_text('{"seed": "x"}')
    assert main([*arguments, "--market", str(market)]) == 1
    assert "market.json: " in capsys.readouterr().err


def test_demo_passes_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played: list[DemoOptions] = []

    def play(options: DemoOptions) -> int:
        played.append(options)
        return 1

    replace_module(monkeypatch, "orchestrator.demo.main", main=play)
    assert main(["demo"]) == 1
    assert main(["demo", "--duration", "90", "--seed", "7", "-o", "json", "--trace", str(tmp_path)]) == 1
    assert main(["demo", "--duration", "2m", "--nodes", "4", "--engine", "vllm", "--keep", "-q"]) == 1
    assert played == [
        DemoOptions(),
        DemoOptions(duration=90.0, seed=7, output="json", trace=tmp_path),
        DemoOptions(duration=120.0, nodes=4, engine="vllm", keep=True, quiet=True),
    ]


def test_reference_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for file, text in module.pages().items():
        assert file.read_text(encoding="utf-8") == text, "run `python docs/generate.py`"
