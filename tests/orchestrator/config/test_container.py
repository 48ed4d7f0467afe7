"""A pool whose engine runs in a container: what its nodes are told, and what is said of one that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.clock import SystemClock
from cloud.ports import Container
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.wiring.ports import connect

CONTAINER = 'run = "container"\n'
TEI = f'kind = "tei"\ntask = "embed"\n{CONTAINER}image = "stage/tei:89-1.9"\n'


def load(directory: Path, engine: str, model: str = "org/model") -> Config:
    file = directory / "pool.toml"
    file.write_text(
        f"[pool.a]\nreplicas = 1\nmodel = '{model}'\n[pool.a.engine]\n{engine}\n", encoding="utf-8"
    )
    return load_config(file)


def faults(directory: Path, engine: str, model: str = "org/model") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, engine, model)
    return {problem.key: problem.text for problem in caught.value.problems}


def test_nodes_are_told_the_container_and_what_runs_in_it(tmp_path: Path) -> None:
    more = 'container_args = ["--init"]\nvolumes = ["/srv:/data:ro"]\nruntime = "podman"\n'
    command = connect(load(tmp_path, TEI + more), SystemClock()).command
    assert command.container == Container(
        image="stage/tei:89-1.9", runtime="podman", args=("--init",), volumes=("/srv:/data:ro",), entry="own"
    )
    assert command.argv[:3] == ("text-embeddings-router", "--model-id", "org/model")
    assert command.stop_signal == "SIGTERM"


def test_a_program_of_the_node_has_no_container(tmp_path: Path) -> None:
    assert connect(load(tmp_path, 'kind = "vllm"'), SystemClock()).command.container is None


def test_the_simulated_engine_is_the_images(tmp_path: Path) -> None:
    command = connect(load(tmp_path, f'{CONTAINER}image = "stage/x:1"'), SystemClock()).command
    assert command.argv[:2] == ("python3", "-m")


def test_another_image_is_another_build_and_another_runtime_is_not(tmp_path: Path) -> None:
    def build(engine: str) -> str:
        return connect(load(tmp_path, engine), SystemClock()).command.build

    changed = [
        build('kind = "tei"\ntask = "embed"'),
        build(TEI),
        build(TEI.replace("1.9", "1.8")),
        build(TEI + 'container_args = ["--init"]'),
        build(TEI + 'volumes = ["/srv:/srv"]'),
    ]
    assert len(set(changed)) == len(changed)
    assert build(TEI) == build(TEI + 'runtime = "docker"')


@pytest.mark.parametrize(
    ("engine", "key", "text"),
    [
        ('image = "x:1"', "image", 'is for containers alone; write run = "container"'),
        ('volumes = ["/a:/a"]', "volumes", "is for containers alone"),
        ('runtime = "docker"', "runtime", "is for containers alone"),
        (CONTAINER, "image", 'is missing; write one with its tag or digest, such as "vllm/vllm-openai:'),
        (f'{CONTAINER}image = "stage/Engine:1"', "image", "is no image's name"),
        (f'{CONTAINER}image = "stage/engine:1 --privileged"', "image", "is no image's name"),
        (f'{CONTAINER}image = "--privileged"', "image", "is no image's name"),
        (
            f'{CONTAINER}image = "host:5000/engine"',
            "image",
            'no tag, so its version is unknown; write "host:',
        ),
        (
            f'{CONTAINER}image = "x:1"\nexecutable = "/bin/sh"',
            "executable",
            "the container's image has its own",
        ),
        (f'{CONTAINER}image = "x:1"\nvolumes = ["models:models"]', "volumes", "'models:models' is no volume"),
        (f'{CONTAINER}image = "x:1"\nvolumes = ["../a:/a"]', "volumes", "is no volume; write SOURCE:TARGET"),
        (f'{CONTAINER}image = "x:1"\nvolumes = ["/a:/x", "/b:/x:ro"]', "volumes", "/x stands there twice"),
        (f'{CONTAINER}image = "x:1"\ncontainer_args = ["other:1"]', "container_args", "taken for the image"),
        (
            f'{CONTAINER}image = "x:1"\ncontainer_args = ["-d"]',
            "container_args",
            "-d: the container is started",
        ),
        (
            f'{CONTAINER}image = "x:1"\ncontainer_args = ["--name=n"]',
            "container_args",
            "--name: the container has",
        ),
        (
            f'{CONTAINER}image = "x:1"\ncontainer_args = ["--env", "A=b"]',
            "container_args",
            "write it into engine.env",
        ),
        (
            f'{CONTAINER}image = "x:1"\ncontainer_args = ["-eA=b"]',
            "container_args",
            "-e: everybody on the node",
        ),
        (
            f'{CONTAINER}image = "x:1"\ncontainer_args = ["-p8000:8000"]',
            "container_args",
            "-p: it has the network",
        ),
    ],
)
def test_what_could_not_start_is_named(tmp_path: Path, engine: str, key: str, text: str) -> None:
    found = faults(tmp_path, f'kind = "vllm"\n{engine}')
    assert text.replace("'", '"') in found[f"pool.a.engine.{key}"].replace("'", '"')


def test_a_model_of_the_node_needs_a_volume(tmp_path: Path) -> None:
    engine = f'kind = "llamacpp"\nserved_name = "l"\n{CONTAINER}image = "x:1"\n'
    found = faults(tmp_path, engine, "/srv/models/l.gguf")
    assert found["pool.a.model"].startswith("/srv/models/l.gguf is a path in the container, and no volume")
    more = engine + 'volumes = ["/data:/srv/models:ro"]'
    assert load(tmp_path, more, "/srv/models/l.gguf").pool.engine.image == "x:1"


@pytest.mark.parametrize(
    ("image", "warned"),
    [
        ("x:latest", True),
        ("x:1", False),
        (f"x:latest@sha256:{'0' * 64}", False),
        (f"registry.example:5000/a/b_c@sha256:{'0' * 64}", False),
    ],
)
def test_an_image_that_changes_is_doubted(tmp_path: Path, image: str, warned: bool) -> None:
    config = load(tmp_path, f'kind = "vllm"\n{CONTAINER}image = "{image}"')
    doubts = [doubt.text for doubt in config.warnings if doubt.key == "pool.a.engine.image"]
    assert doubts == (
        ["latest is another image from day to day, and nodes would differ; write a version or a digest"]
        if warned
        else []
    )


def test_a_machine_without_docker_and_podman_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = load(tmp_path, f'kind = "vllm"\n{CONTAINER}image = "x:1"')
    doubts = {doubt.key: doubt.text for doubt in config.warnings}
    assert doubts["pool.a.engine.runtime"].startswith("docker and podman: not on the PATH")
    assert "pool.a.engine.executable" not in doubts
