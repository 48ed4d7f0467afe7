"""The script that starts an engine over SSH: it runs here, without systemd, and the engine answers."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from aws_stage import free_port

from cloud.clock import SystemClock
from cloud.engines.simulated import SimulatedEngine
from cloud.ports import Container, EngineCommand, EngineSpec
from cloud.skypilot.start import start_script

ROOT = Path(__file__).parents[3]


def script_in(directory: Path, command: EngineCommand, port: int) -> str:
    """The script with its files in a directory of the test."""
    return start_script("llama", command, port).replace("/opt/orchestrator", str(directory / "here"))


@pytest.mark.slow
@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="this machine has a systemd of its own")
def test_an_engine_starts_for_real_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    spec = EngineSpec(model="simulated", served_name="simulated", executable=sys.executable)
    engine = SimulatedEngine(SystemClock(), model_name="simulated", task="generate")
    command = engine.command(spec)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = script_in(tmp_path, command, port)
    pid_file = tmp_path / "here" / "pid"
    try:
        for _ in range(2):
            subprocess.run(["sh", "-s"], input=script, text=True, check=True, env=environment)
            until = time.monotonic() + 60
            while not answers(port):
                assert time.monotonic() < until, (tmp_path / "here" / "engine.log").read_text()
                time.sleep(0.1)
            first = pid_file.read_text()
        assert pid_file.read_text() == first
    finally:
        os.killpg(int(pid_file.read_text()), signal.SIGKILL)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_words_and_variables_arrive_as_they_are(tmp_path: Path) -> None:
    words = ("it's", "a b", "$HOME", "{port}", "`id`")
    program = 'import os, sys; open(sys.argv[1], "w").write(repr((sys.argv[2:], os.environ["V"])))'
    command = EngineCommand(
        argv=(sys.executable, "-c", program, str(tmp_path / "out"), *words), env={"V": "x 'y' $z"}
    )
    script = script_in(tmp_path, command, 8000)
    line = script.split("<<'ORCHESTRATOR_END'\n")[1].split("\nORCHESTRATOR_END")[0]
    subprocess.run(["sh", "-c", line], check=True)
    expected = (["it's", "a b", "$HOME", "8000", "`id`"], "x 'y' $z")
    assert (tmp_path / "out").read_text() == repr(expected)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("argv", "run --rm --name orchestrator-engine --network host --ipc host img vllm serve m"),
        (
            "program",
            "run --rm --name orchestrator-engine --network host --ipc host --entrypoint vllm img serve m",
        ),
        ("own", "run --rm --name orchestrator-engine --network host --ipc host img serve m"),
    ],
)
def test_a_container_is_run_by_what_the_machine_has(tmp_path: Path, entry, expected) -> None:
    log = tmp_path / "log"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >>{log}\n')
    docker.chmod(0o755)
    command = EngineCommand(argv=("vllm", "serve", "m"), container=Container(image="img", entry=entry))
    line = start_script("p", command, 1).split("<<'ORCHESTRATOR_END'\n")[1].split("\nORCHESTRATOR_END")[0]
    subprocess.run(["sh", "-c", line], check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert log.read_text().splitlines() == ["rm --force orchestrator-engine", expected]
