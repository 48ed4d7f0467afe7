"""A container on its node: what docker and podman are told, and what is said where they cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from cloud import node_container
from cloud.node_checks import Ask
from cloud.node_container import Runtime, checks, fetch, find, has_gpus, remove, why, words
from cloud.node_metadata import Refused
from cloud.ports import Container

DOCKER, PODMAN = Runtime("docker", False), Runtime("podman", True)
ANY = {"container": {"runtime": ""}}
ARGV = ("vllm", "serve", "m")


class Machine:
    """Programs that answer as told: by the beginning of the command, the last status and text again."""

    def __init__(self, **answers: list[tuple[int, str]]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    def __call__(self, command: Sequence[str]) -> tuple[int, str]:
        self.asked.append(" ".join(command))
        answers = self._answers.get(command[1], [(0, "")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of programs. `cloud.node_container` waits for nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(node_container, "_GONE_SECONDS", 0.0)
    return tmp_path


def program(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def test_a_command_line_holds_names_of_variables_and_no_value() -> None:
    container = {"image": "x:1", "args": ["--init"], "volumes": ["/a:/b:ro"], "entry": "program"}
    assert words(DOCKER, "node", container, ARGV, {"TOKEN": "secret", "A": "b"}, gpus=False) == [
        *("docker", "run", "--rm", "--name", "node", "--pull=never", "--network=host", "--log-driver=none"),
        *("--shm-size=16g", "--security-opt=no-new-privileges", "--env", "A", "--env", "TOKEN"),
        *("--volume", "/a:/b:ro", "--entrypoint", "vllm", "--init", "x:1", "serve", "m"),
    ]


@pytest.mark.parametrize(
    ("entry", "end"),
    [
        ("program", ["--entrypoint", "vllm", "x:1", "serve", "m"]),
        ("own", ["x:1", "serve", "m"]),
        ("argv", ["x:1", "vllm", "serve", "m"]),
    ],
)
def test_the_image_or_the_command_starts_the_engine(entry: str, end: list[str]) -> None:
    found = words(
        DOCKER, "n", {"image": "x:1", "args": [], "volumes": [], "entry": entry}, ARGV, (), gpus=False
    )
    assert found[-len(end) :] == end
    assert ("--entrypoint" in found) == (entry == "program")


@pytest.mark.parametrize(
    ("runtime", "args", "ours"),
    [
        (DOCKER, [], "--gpus all"),
        (PODMAN, [], "--device nvidia.com/gpu=all"),
        (DOCKER, ["--gpus", "device=0"], ""),
        (DOCKER, ["--gpus=2"], ""),
        (PODMAN, ["--device", "nvidia.com/gpu=0"], ""),
    ],
)
def test_all_gpus_are_given_unless_the_user_chooses(runtime: Runtime, args: list[str], ours: str) -> None:
    container = {"image": "x:1", "args": args, "volumes": [], "entry": "argv"}
    given = " ".join(words(runtime, "n", container, ARGV, (), gpus=True))
    without = " ".join(words(runtime, "n", container, ARGV, (), gpus=False))
    assert given.replace(f" {ours}" if ours else "", "", 1) == without
    assert (ours in given) if ours else given == without


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_the_real_program_knows_every_flag(name: str) -> None:
    """Where it is installed; docker's own --gpus, and CDI's device by podman, are among them."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    known = subprocess.run([name, "run", "--help"], capture_output=True, text=True, check=True).stdout
    container = {"image": "x:1", "args": [], "volumes": ["/a:/b"], "entry": "program"}
    runtime = DOCKER if name == "docker" else PODMAN
    given = words(runtime, "n", container, ("serve",), ("A",), gpus=True)
    flags = {word.partition("=")[0] for word in given if word.startswith("--")}
    assert len(flags) >= 10
    assert {flag for flag in flags if not re.search(rf"{flag}\b", known)} == set()


def test_the_runtime_that_answers_is_taken_whatever_it_is_called(programs: Path) -> None:
    with pytest.raises(Refused, match="docker and podman: not on this machine; install one"):
        find()
    program(programs, "docker", "echo Cannot connect to the Docker daemon >&2; exit 1")
    with pytest.raises(Refused, match="docker does not answer: Cannot connect to the Docker daemon"):
        find()
    program(programs, "podman", "echo Client: Podman Engine")
    assert find() == PODMAN
    with pytest.raises(Refused, match="docker does not answer"):
        find("docker")
    program(programs, "docker", "echo Emulating: Podman Engine")
    assert find() == Runtime("docker", True)
    program(programs, "docker", "echo Server: Docker Engine")
    assert find() == DOCKER


def test_a_container_is_removed_until_it_is_gone(programs: Path) -> None:
    machine = Machine(ps=[(0, "abc\n"), (125, "no such container"), (0, "")])
    remove(PODMAN, "node", machine)
    assert [asked.split()[1] for asked in machine.asked] == ["kill", "rm", "ps"] * 3
    assert "podman kill node" in machine.asked
    assert "podman rm --force --volumes node" in machine.asked
    assert "podman ps --all --quiet --filter name=^node$" in machine.asked


def test_one_that_stays_is_named(programs: Path) -> None:
    machine = Machine(ps=[(0, "abc\n")], rm=[(1, "Error: device or resource busy\n")])
    with pytest.raises(Refused, match="container node cannot be removed: Error: device or resource busy"):
        remove(DOCKER, "node", machine)


def test_a_command_that_hangs_is_tried_again_and_not_for_ever(programs: Path) -> None:
    """A runtime that waits for a lock of a process that is stuck."""
    hung: list[str] = []

    def hangs(times: int) -> Ask:
        def run(command: Sequence[str]) -> tuple[int, str]:
            if command[1] == "rm" and len(hung) < times:
                hung.append(command[1])
                raise TimeoutError("no answer within 60 s")
            return 0, ""

        return run

    remove(PODMAN, "node", hangs(2))
    assert hung == ["rm", "rm"]
    with pytest.raises(Refused, match="container node cannot be removed: no answer within 60 s"):
        remove(PODMAN, "node", hangs(100))
    assert len(hung) < 10


def test_an_image_that_is_there_is_not_fetched() -> None:
    told: list[str] = []
    fetch(Runtime("no-such-program", False), "x:1", told.append, Machine(image=[(0, "[]")]))
    assert told == []


def test_an_image_is_fetched_with_its_progress(programs: Path) -> None:
    program(programs, "docker", "echo 0a1: Downloading; echo; echo 0a1: Pull complete")
    told: list[str] = []
    fetch(DOCKER, "x:1", told.append, Machine(image=[(1, "")]))
    assert told == ["x:1 is fetched", "x:1: 0a1: Downloading", "x:1: 0a1: Pull complete"]


def test_why_an_image_cannot_be_fetched_is_said(programs: Path) -> None:
    program(programs, "docker", "echo Error response from daemon: pull access denied for x >&2; exit 1")
    with pytest.raises(Refused) as caught:
        fetch(DOCKER, "x:1", lambda _: None, Machine(image=[(1, "")]))
    assert str(caught.value) == (
        "image x:1: the registry refuses it; log in on the node (pull access denied for x)"
    )


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Error: initializing source docker://x: reading manifest 9 in x: manifest unknown", "there is none"),
        (
            "Error response from daemon: Get https://r/v2/: dial tcp: lookup r: no such host",
            "does not answer",
        ),
        ("Error response from daemon: Get https://r/v2/: net/http: TLS handshake timeout", "does not answer"),
        ("write /var/lib/docker/x: no space left on device", "the disk is full"),
        ('Error: short-name "a/b" did not resolve to an alias', "there is none"),
        ("unauthorized: authentication required", "log in on the node"),
    ],
)
def test_faults_of_registries_have_an_advice(said: str, advice: str) -> None:
    assert advice in why(["Trying to pull x", said], "x:1")


def test_the_name_of_an_image_is_no_fault() -> None:
    """ "time" and "refused" in it would be a registry that does not answer."""
    said = "Error: reading manifest 1 in r:5000/refused/cuda-runtime: unauthorized: authentication required"
    trying = "Trying to pull r:5000/refused/cuda-runtime:1..."
    for image in ("r:5000/refused/cuda-runtime:1", f"r:5000/refused/cuda-runtime@sha256:{'0' * 64}"):
        assert why([trying, said], image).startswith("the registry refuses it")


def test_a_fault_that_nobody_knows_is_shown_as_it_is() -> None:
    assert why(["Error: something odd"], "x:1") == "something odd"
    assert why([], "x:1") == "no output"


def test_a_machine_is_looked_at_before_it_starts(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lack,) = checks(ANY, {})
    assert (lack.ok, lack.fatal) == (False, True)
    program(programs, "docker", "echo Docker")
    assert [(check.name, check.ok) for check in checks(ANY, {})] == [("container", True)]
    monkeypatch.setattr(node_container, "_GPU", "/dev/null")
    assert has_gpus()
    gpus = checks(ANY, {})[1]
    assert (gpus.ok, gpus.fatal) == (False, False)
    assert "install nvidia-container-toolkit" in gpus.text
    program(programs, "nvidia-container-runtime-hook", "")
    assert checks(ANY, {})[1].ok


def test_podman_needs_a_description_of_the_gpus(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "podman", "echo Podman")
    monkeypatch.setattr(node_container, "_GPU", "/dev/null")
    monkeypatch.setattr(node_container, "_SPECIFICATIONS", (f"{tmp_path}/cdi",))
    assert "nvidia-ctk cdi generate" in checks({"container": {"runtime": "podman"}}, {})[1].text
    (tmp_path / "cdi").mkdir()
    assert checks({"container": {"runtime": "podman"}}, {})[1].ok


def test_the_program_becomes_the_container(programs: Path) -> None:
    """The engine's process is the runtime's client, with its environment and exit status."""
    log = programs / "log"
    program(programs, "docker", f'echo "$@" "KEY=$KEY" >> {log}\n[ "$1" != run ] || exit 7')
    container = asdict(Container(image="x:1", entry="argv"))
    given = {**container, "argv": ["serve", "--port", "1"], "environment": ["KEY"]}
    done = subprocess.run(
        [sys.executable, "-I", "-m", "cloud.local.container_process", "run", "node", json.dumps(given)],
        env={**os.environ, "KEY": "secret"},
        cwd=programs,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert list(json.loads((programs / "boot.json").read_text())["times"]) == ["image", "start"]
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("run --rm --name node ")
    assert lines[-1].endswith("--env KEY x:1 serve --port 1 KEY=secret")
    assert "secret" not in done.stderr
    program(programs, "docker", "exit 1")
    for command in (["run", "node", json.dumps(given)], ["remove", "node"]):
        failed = subprocess.run(
            [sys.executable, "-I", "-m", "cloud.local.container_process", *command],
            cwd=programs,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
        assert re.match("container: (failed: )?docker does not answer", failed.stderr)
