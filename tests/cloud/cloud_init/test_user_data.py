"""The user-data of a node: small, without secrets, units that systemd takes, programs that run."""

import ast
import gzip
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from node_bench import make_certificate

import cloud
from cloud.agent_keys import CARRIED as IN_PROGRAM
from cloud.agent_keys import agent_program
from cloud.clock import SystemClock
from cloud.cloud_init.bare import bare
from cloud.cloud_init.short_names import shortened
from cloud.cloud_init.user_data import LIMIT, NodeSetup, cloud_config, unpacked, user_data, written
from cloud.engines.vllm import VllmEngine
from cloud.ports import Container, EngineCommand, EngineSpec

PEM = "-----BEGIN CERTIFICATE-----\n" + "MIIBszCCAVmgAwIBAgIUE0Jz3yx\n" * 40 + "-----END CERTIFICATE-----\n"
CLOUD = Path(cloud.__file__).parent
CARRIED = {"node_agent.py", *(f"node_{part}.py" for part in IN_PROGRAM)}
PROGRAMS = sorted({path.name for path in CLOUD.glob("node_*.py")} - CARRIED)
PARAMETER = "arn:aws:ssm:us-east-1:123456789012:parameter/llama/hf-token"


def setup(**changes) -> NodeSetup:
    spec = EngineSpec(
        model="meta-llama/Llama-3.1-70B-Instruct",
        served_name="llama",
        args=("--tensor-parallel-size", "4", "--max-model-len", "8192"),
        env={"HF_HUB_OFFLINE": "1"},
        executable="/opt/vllm/bin/vllm",
        drain_budget=30.0,
    )
    command = VllmEngine(SystemClock(), model_name="llama").command(spec)
    given = {
        "pool": "llama",
        "command": command,
        "port": 8000,
        "secrets": {"HF_TOKEN": PARAMETER},
        "report_url": "https://control.internal:9465",
        "trusted": PEM,
    }
    return NodeSetup(**{**given, **changes})


def test_it_is_well_below_what_ec2_takes_and_always_the_same():
    data = user_data(setup())
    assert len(data) < LIMIT * 0.85
    assert data == user_data(setup())
    assert unpacked(data) == cloud_config(setup()) == gzip.decompress(data).decode()


@pytest.mark.parametrize("contained", [False, True])
def test_the_largest_pool_fits_too(tmp_path, contained):
    """With room for a longer model, more flags and more variables."""
    certificate, _ = make_certificate(tmp_path)
    container = Container(
        image=f"123456789012.dkr.ecr.us-east-1.amazonaws.com/huggingface/text-generation@sha256:{noise(64)}",
        args=("--ulimit", "memlock=-1", "--ulimit", "stack=67108864"),
        volumes=("/srv/models:/srv/models:ro",),
        entry="program",
    )
    everything = setup(
        command=replace(setup().command, container=container if contained else None),
        weights="s3://llama-weights/llama-3.1-70b",
        trusted=certificate.read_text(),
    )
    assert len(user_data(everything)) < LIMIT - 100


def test_a_container_travels_instead_of_what_looks_at_programs():
    container = Container(image="vllm/vllm-openai:v0.18.0", volumes=("/srv:/srv:ro",), entry="program")
    command = replace(setup().command, container=container)
    files = written(setup(command=command))
    names = {Path(path).name for path in files} ^ {Path(path).name for path in written(setup())}
    assert names == {"node_container.py", "node_program.py"}
    described = json.loads(files["/opt/orchestrator/engine.json"])
    assert described["container"]["image"] == "vllm/vllm-openai:v0.18.0"
    assert described["container"]["volumes"] == ["/srv:/srv:ro"]
    unit = files["/etc/systemd/system/orchestrator-engine.service"].splitlines()
    assert "ExecStopPost=-/usr/bin/python3 -m cloud.node_container" in unit
    assert next(line for line in unit if line.startswith("After=")).endswith(" docker.service")
    shields = ("User=", "NoNewPrivileges=", "Protect", "Private")
    assert not [line for line in unit if line.startswith(shields)]  # docker and podman are root's
    with pytest.raises(ValueError, match=r"engine\.image \(\d+ bytes\)"):
        user_data(setup(command=replace(command, argv=("vllm", noise(20_000)))))


def noise(size):
    return "".join(hashlib.sha256(str(i).encode()).hexdigest() for i in range(size // 64))


def test_what_is_too_large_is_refused_with_what_takes_the_room():
    large = setup(weights="s3://bucket/model", trusted=PEM.replace("-----END", f"{noise(12_000)}\n-----END"))
    with pytest.raises(ValueError, match=r"and EC2 takes 16384; shorten one of these by \d+") as refused:
        user_data(large)
    shares = re.findall(r"([a-z0-9_.]+(?: [a-zA-Z0-9_.]+)*) \((\d+) bytes\)", str(refused.value))
    assert [name for name, _ in shares[:2]] == ["agents.ca_file", "cloud.aws.weights from S3"]
    assert {name for name, _ in shares} > {"engine.args and engine.env", "cloud.aws.engine_secrets"}
    with pytest.raises(ValueError, match=r"without it: engine\.args and engine\.env \(\d+ bytes\)"):
        user_data(setup(command=EngineCommand(argv=("vllm", noise(20_000)))))
    many = {f"SECRET_{i}": f"{PARAMETER}{noise(128)[i:]}" for i in range(100)}
    with pytest.raises(ValueError, match=r"without it: cloud\.aws\.engine_secrets \(\d+ bytes\)"):
        user_data(
            setup(secrets={name: hashlib.sha512(arn.encode()).hexdigest() for name, arn in many.items()})
        )


def test_only_certificates_of_the_file_travel():
    """People keep the key in the same file, and remarks of openssl that begin with blanks."""
    key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBM\n-----END PRIVATE KEY-----\n"
    text = f" 0 s:CN = control\n   i:CN = our CA\n{PEM}{key} 1 s:CN = our CA\r\n{PEM}".replace("\n", "\r\n")
    config = yaml.safe_load(cloud_config(setup(trusted=text)))
    files = {f["path"]: f["content"] for f in config["write_files"]}
    assert files["/opt/orchestrator/trusted.pem"] == PEM * 2
    with pytest.raises(ValueError, match="holds no certificate"):
        user_data(setup(trusted=key))


def test_cloud_init_writes_the_files_as_they_are():
    config = yaml.safe_load(cloud_config(setup()))
    assert {f["path"]: f["content"] for f in config["write_files"]} == written(setup())
    names = ("disks", "engine", "console", "agent")
    assert config["runcmd"][-1][-4:] == [f"orchestrator-{name}.service" for name in names]
    assert config["runcmd"][0] == ["systemd-sysusers"]  # the units' user is there before they are


@pytest.mark.parametrize("cloud", ["aws", "azure", "gcp"])
def test_the_programs_are_the_ones_of_this_package(cloud):
    """Of the readers of metadata of other clouds than AWS a node has its own alone."""
    files = written(setup(weights="s3://bucket/model", cloud=cloud))
    others = {"node_azure.py", "node_gcp.py"} - {f"node_{cloud}.py"}
    carried = set(PROGRAMS) - {"node_container.py"} - others
    assert not any(f"/opt/orchestrator/cloud/{name}" in files for name in others)
    texts = {name: bare((CLOUD / name).read_text()) for name in carried}
    for name, text in shortened(texts, agent_program()).items():
        assert files[f"/opt/orchestrator/cloud/{name}"] == text


def test_programs_that_a_pool_does_not_need_stay_away():
    def programs(**changes):
        return {Path(path).name for path in written(setup(**changes)) if path.endswith(".py")}

    assert "node_agent.py" not in programs()  # it comes with the node's key
    assert programs(weights="s3://a/b") - programs() == {"node_weights.py"}
    assert programs() - programs(local_disk=False) == {"node_disks.py"}
    assert programs(weights="/opt/model") == programs()


def test_without_a_listener_there_is_no_agent():
    files = written(setup(report_url="", trusted=""))
    assert "/etc/systemd/system/orchestrator-engine.service" in files
    assert "/etc/systemd/system/orchestrator-agent.service" not in files
    assert "orchestrator-agent.service" not in cloud_config(setup(report_url=""))


def test_the_engine_stops_as_its_command_says():
    unit = written(setup())["/etc/systemd/system/orchestrator-engine.service"]
    assert {"KillMode=mixed", "KillSignal=SIGTERM", "TimeoutStopSec=50"} <= set(unit.splitlines())


@pytest.mark.slow
def test_a_driver_that_hangs_does_not_keep_the_engines_start_from_telling_so(tmp_path, monkeypatch):
    """systemd gives up a start whose preparation does not end, and the boot report would never be written."""
    unit = written(setup())["/etc/systemd/system/orchestrator-engine.service"]
    line = next(line for line in unit.splitlines() if line.startswith("ExecStartPre="))
    words = shlex.split(line.partition("-+")[2].replace("timeout 30", "timeout 1"))
    hangs = tmp_path / "nvidia-smi"
    hangs.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    hangs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    try:
        subprocess.run(words, timeout=60, check=False)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("change", [{"pool": "a b"}, {"report_url": "https://x; rm"}, {"pool": "%h"}])
def test_what_would_mean_something_else_to_systemd_is_refused(change):
    with pytest.raises(ValueError, match="cannot stand in a unit"):
        user_data(setup(**change))


@pytest.mark.slow
@pytest.mark.debian("systemd-analyze", package="systemd")
def test_systemd_takes_the_units(tmp_path):
    units = []
    for path, text in written(setup(weights="s3://bucket/model")).items():
        if path.endswith(".service"):
            units.append(tmp_path / Path(path).name)
            units[-1].write_text(text.replace("/usr/bin/python3", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if "orchestrator-" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.slow
@pytest.mark.debian("cloud-init", package="cloud-init")
def test_cloud_init_takes_the_config(tmp_path):
    file = tmp_path / "user-data"
    file.write_text(cloud_config(setup()))
    done = subprocess.run(
        ["cloud-init", "schema", "--config-file", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


def test_a_node_needs_nothing_but_an_old_python():
    """What runs on nodes imports the standard library and each other only."""
    files = {f"{name}": (CLOUD / name).read_text() for name in (*PROGRAMS, "node_agent.py")}
    files |= {path: text for path, text in written(setup()).items() if path.endswith(".py")}
    for path, text in files.items():
        ast.parse(text, path, feature_version=(3, 9))
        imports = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
        known = {*sys.stdlib_module_names, "cloud"}
        assert {name.partition(".")[0] for name in imports} <= known


def test_any_engine_may_be_described():
    command = EngineCommand(argv=("engine", "--odd", "%h $HOME 'x'\n"), stop_signal="SIGINT", stop_grace=1.5)
    files = written(setup(command=command))
    assert "TimeoutStopSec=2" in files["/etc/systemd/system/orchestrator-engine.service"]


def test_instance_types_with_flags_of_their_own_travel_together():
    engine = VllmEngine(SystemClock(), model_name="llama")
    base = ("--max-model-len", "8192")
    usual, large = (
        engine.command(EngineSpec(model="m", served_name="llama", args=args))
        for args in (base, (*base, "--tensor-parallel-size", "8", "--shutdown-timeout", "300"))
    )
    types = ("p4d.24xlarge", "p5.48xlarge", "g6e.48xlarge")
    one = setup(command=usual)
    all_of_them = setup(
        command=replace(usual, on=dict.fromkeys(types, large)), gpus=1, gpus_on=dict.fromkeys(types, 8)
    )
    engine_file = json.loads(written(all_of_them)["/opt/orchestrator/engine.json"])
    assert engine_file["argv"] == list(usual.argv)
    assert engine_file["on"] == {kind: {"argv": list(large.argv), "gpus": 8} for kind in types}
    assert json.loads(written(one)["/opt/orchestrator/engine.json"])["on"] == {}
    assert len(user_data(all_of_them)) - len(user_data(one)) < 400
    unit = written(all_of_them)["/etc/systemd/system/orchestrator-engine.service"]
    assert f"TimeoutStopSec={large.stop_grace:.0f}\n" in unit  # no type's drain is cut


def test_the_agent_reads_the_engines_log_and_starts_where_its_group_is_missing():
    files = written(setup())
    unit = files["/etc/systemd/system/orchestrator-agent.service"].splitlines()
    assert "SupplementaryGroups=systemd-journal" in unit
    assert "g systemd-journal -" in files["/etc/sysusers.d/orchestrator-engine.conf"].splitlines()
