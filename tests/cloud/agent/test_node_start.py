"""A node proves which one it is and gets its own key; its engine starts with its address and its secrets."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import boto3
import pytest
import structlog
import yaml
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from node_bench import SECRET, make_certificate

import cloud.node_start
from cloud.agent_keys import CHALLENGE_SECONDS, MOST_AT_ONCE, NodeKeys, agent_program
from cloud.aws.identity import CallerIdentity
from cloud.clock import SystemClock
from cloud.cloud_init.user_data import NodeSetup, unpacked, user_data
from cloud.engines.simulated import SimulatedEngine
from cloud.errors import CloudError
from cloud.node_agent import node_key
from cloud.node_aws import Aws
from cloud.node_metadata import Metadata, Refused
from cloud.node_start import CHALLENGE, STS_BODY, STS_TYPE
from cloud.ports import EngineSpec

pytestmark = pytest.mark.slow

PATIENCE = 60.0
REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/nodes/llama-node"
REPOSITORY = Path(cloud.node_start.__file__).parents[1]


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def assume(aws_shim):
    """Credentials such as EC2 gives an instance: those of a role, in a session named like the instance."""
    sts = boto3.client("sts", region_name=REGION, endpoint_url=aws_shim.url)

    def made(node: str, role: str = ROLE) -> dict[str, str]:
        return sts.assume_role(RoleArn=role, RoleSessionName=node)["Credentials"]

    return made


@pytest.fixture
async def control(aws_shim, serve, tmp_path):
    """A control host that hands out keys over TLS, and the certificate to trust."""
    certificate, private = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private)
    identify = CallerIdentity(role=ROLE, regions=[REGION], endpoint=aws_shim.url)
    served = await serve(tls=context, identify=identify)
    served.certificate = certificate
    return served


def begin(machine, shim, *words: str, **more: str) -> subprocess.Popen:
    """The program as a process on a machine."""
    return subprocess.Popen(
        [sys.executable, "-m", "cloud.node_start", "--imds", machine.url, *words],
        env={**os.environ, "AWS_ENDPOINT_URL": shim.url, "PYTHONPATH": str(REPOSITORY), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def run(machine, shim, *words: str, **more: str) -> subprocess.CompletedProcess:
    """The program from its start to its end."""
    with begin(machine, shim, *words, **more) as process:
        try:
            out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def keys(machine) -> tuple[str, ...]:
    """Where the key and the agent's program go."""
    return ("--key-file", str(machine.key), "--agent", str(machine.directory / "agent.py"))


async def fetch_key(machine, shim, control) -> subprocess.CompletedProcess:
    ca = ("--ca-file", str(control.certificate))
    return await run(machine, shim, "key", "--url", control.url, *keys(machine), *ca)


def test_it_signs_as_boto_does(machine, assume, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    node, now = machine(), 1_767_225_600.0
    held = assume(node.id)
    node.give_role("llama-node", held)
    headers = {"Content-Type": STS_TYPE, CHALLENGE: "12  34"}
    signed = Aws(Metadata(node.url)).signed("sts", REGION, headers, STS_BODY, now)
    request = AWSRequest("POST", f"https://sts.{REGION}.amazonaws.com/", dict(headers), STS_BODY)
    request.context["timestamp"] = request.headers["X-Amz-Date"] = time.strftime(
        "%Y%m%dT%H%M%SZ", time.gmtime(now)
    )
    request.headers["X-Amz-Security-Token"] = held["SessionToken"]
    keys = Credentials(held["AccessKeyId"], held["SecretAccessKey"], held["SessionToken"])
    auth = SigV4Auth(keys, "sts", REGION)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert signed["Authorization"].endswith(f"Signature={auth.signature(text, request)}")


async def test_a_node_gets_its_own_key_and_reports_with_it(machine, aws_shim, assume, control, until):
    node = machine()
    node.key.unlink()
    node.give_role("llama-node", assume(node.id))
    done = await fetch_key(node, aws_shim, control)
    assert done.returncode == 0, done.stderr
    assert node.key.read_text().strip() == node_key(SECRET, node.id).hex()
    assert node.key.stat().st_mode & 0o777 == 0o600
    given = (node.directory / "agent.py").read_text()
    assert given == agent_program()
    node.start("--url", control.url, "--ca-file", str(control.certificate))
    await until(lambda: control.receiver.accepted >= 1)
    assert control.receiver.keys.given == 1


async def test_another_instance_or_role_gets_no_key(machine, aws_shim, assume, control):
    other_account = "arn:aws:iam::210987654321:role/llama-node"
    for of, role in (("i-0fedcba9876543210", ROLE), (None, ROLE + "s"), (None, other_account)):
        node = machine()
        node.key.unlink()
        node.give_role("llama-node", assume(of or node.id, role))
        done = await fetch_key(node, aws_shim, control)
        assert done.returncode == 1
        assert "not proved to be this node" in done.stderr
        assert not node.key.exists()
    assert control.receiver.keys.given == 0


async def test_a_node_that_is_not_ours_gets_no_key(machine, aws_shim, assume, control):
    node = machine()
    node.give_role("llama-node", assume(node.id))
    control.receiver.keys._owned = lambda _: False
    assert (await fetch_key(node, aws_shim, control)).returncode == 1
    calls = aws_shim.order("calls")
    assert "GetCallerIdentity" not in calls  # nobody else's proofs are worth a call


async def test_while_sts_does_not_answer_the_node_asks_again(machine, aws_shim, assume, control):
    node = machine()
    node.give_role("llama-node", assume(node.id))
    aws_shim.order("outage", services=["sts"])
    done = await fetch_key(node, aws_shim, control)
    assert (done.returncode, "status 503" in done.stderr) == (1, True)
    aws_shim.order("outage", services=[])
    assert (await fetch_key(node, aws_shim, control)).returncode == 0


async def test_keys_go_over_tls_only(machine, aws_shim, assume, serve):
    identify = CallerIdentity(role=ROLE, regions=[REGION], endpoint=aws_shim.url)
    served, node = await serve(identify=identify), machine()
    node.give_role("llama-node", assume(node.id))
    done = await run(node, aws_shim, "key", "--url", served.url, *keys(node))
    assert (done.returncode, "over TLS only" in done.stderr) == (1, True)
    assert "GetCallerIdentity" not in aws_shim.order("calls")


class HandClock(SystemClock):
    """Time that can be put forward."""

    ahead = 0.0

    def now(self):
        return super().now() + self.ahead


async def test_a_proof_is_worth_nothing_elsewhere_or_later(machine, aws_shim, assume, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_shim.url)
    clock, node = HandClock(), machine()
    node.give_role("llama-node", assume(node.id))
    identify = CallerIdentity(role=ROLE, regions=[REGION], endpoint=aws_shim.url)
    keys = NodeKeys(clock, secret=SECRET, identify=identify, owned=lambda _: True)
    aws = await asyncio.to_thread(Aws, Metadata(node.url))

    def proof(challenge: str, signed: str) -> bytes:
        headers = {"Content-Type": STS_TYPE, CHALLENGE: signed}
        made = aws.signed("sts", REGION, headers, STS_BODY, time.time())
        return json.dumps({"challenge": challenge, "headers": made}).encode()

    here = keys._made(node.id, int(clock.now()))
    elsewhere = NodeKeys(clock, secret=b"x" * 32, identify=identify, owned=lambda _: True)
    foreign = elsewhere._made(node.id, int(clock.now()))
    assert await keys._proved(node.id, proof(here, here)) == node.id
    for challenge, signed, words in (
        (here, foreign, "STS knows no instance by this signature"),  # signed for another control host
        (foreign, foreign, "not one that was given"),
        (keys._made("i-0fedcba9876543210", int(clock.now())), here, "not one that was given"),
        ("9" * 200, here, "not one that was given"),
        ("x", here, "not one that was given"),
    ):
        with pytest.raises(CloudError, match=words):
            await keys._proved(node.id, proof(challenge, signed))
    recorded = proof(here, here)
    clock.ahead = CHALLENGE_SECONDS + 2.0
    with pytest.raises(CloudError, match="lately"):
        await keys._proved(node.id, recorded)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"challenge": 1, "headers": {}}',
        b'{"challenge": "x", "headers": []}',
        b'{"challenge": "x", "headers": {"a": 1}}',
        b"[" * 10_000,
    ],
)
async def test_garbage_is_refused(body, control):
    trust = ssl.create_default_context(cafile=str(control.certificate))
    async with aiohttp.ClientSession() as http:
        url = f"{control.url}/v1/nodes/i-0123456789abcdef0/key"
        async with http.post(url, data=body, ssl=trust) as answer:
            assert answer.status == 401


async def test_a_request_may_come_in_pieces_and_slow_ones_keep_nobody_out(
    machine, aws_shim, assume, control, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_shim.url)
    node, trust = machine(), ssl.create_default_context(cafile=str(control.certificate))
    node.give_role("llama-node", assume(node.id))
    aws = await asyncio.to_thread(Aws, Metadata(node.url))
    writers = []
    try:
        for _ in range(MOST_AT_ONCE + 1):
            _, slow = await asyncio.open_connection("127.0.0.1", control.port, ssl=trust)
            slow.write(b"POST /v1/nodes/i-0/key HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            await slow.drain()
            writers.append(slow)
        challenge = control.receiver.keys._made(node.id, int(time.time()))
        headers = {"Content-Type": STS_TYPE, CHALLENGE: challenge}
        signed = aws.signed("sts", REGION, headers, STS_BODY, time.time())
        body = json.dumps({"challenge": challenge, "headers": signed}).encode()

        async def pieces():
            for at in range(0, len(body), 200):
                yield body[at : at + 200]
                await asyncio.sleep(0.02)

        async with aiohttp.ClientSession() as http:
            url = f"{control.url}/v1/nodes/{node.id}/key"
            async with http.post(url, data=pieces(), ssl=trust) as answer:
                assert answer.status == 200
                assert (await answer.json())["key"] == node_key(SECRET, node.id).hex()
    finally:
        for slow in writers:
            slow.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Authorization": "AWS4-HMAC-SHA256 Credential=x"}, "no signature"),
        ({"Authorization": None}, "no signature"),
        ({"X-Amz-Date": "now\r\nHost: evil"}, "no signature"),
        ({"X-Amz-Security-Token": "a b"}, "credentials of a role"),
        ({"region": "eu-west-1"}, "no nodes"),
        ({"unsigned": True}, "not part of what was signed"),
    ],
)
async def test_headers_that_are_no_proof_are_not_sent_on(change, words):
    region, names = change.pop("region", REGION), "content-type;host;x-amz-date;x-amz-security-token"
    names += "" if change.pop("unsigned", False) else f";{CHALLENGE.lower()}"
    scope = f"20260101/{region}/sts/aws4_request"
    headers = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential=ASIAAAAAAAAAAAAAAAAA/{scope}, "
        f"SignedHeaders={names}, Signature={'0' * 64}",
        "X-Amz-Date": "20260101T000000Z",
        "X-Amz-Security-Token": "token",
        **change,
    }
    identify = CallerIdentity(role=ROLE, regions=[REGION], endpoint="http://127.0.0.1:9")
    with pytest.raises(CloudError, match=words):
        await identify({name: value for name, value in headers.items() if value is not None}, "x")


def test_a_role_that_is_none_is_refused():
    with pytest.raises(ValueError, match="is not the ARN of a role"):
        CallerIdentity(role="llama-node", regions=[REGION])


async def test_the_engine_gets_address_flags_and_secrets(machine, aws_shim, assume, tmp_path):
    ssm = boto3.client("ssm", region_name=REGION, endpoint_url=aws_shim.url)
    kept = boto3.client("secretsmanager", region_name=REGION, endpoint_url=aws_shim.url)
    ssm.put_parameter(
        Name="/llama/key", Value='it\'s "secret" $HOME\n%n', Type="SecureString", Overwrite=True
    )
    parameter = ssm.get_parameter(Name="/llama/key")["Parameter"]["ARN"]
    try:
        secret = kept.create_secret(Name="hf", SecretString="hf_1234")["ARN"]
    except kept.exceptions.ResourceExistsException:
        secret = kept.describe_secret(SecretId="hf")["ARN"]
    node = machine()
    node.give_role("llama-node", assume(node.id))
    shows = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    odd = "a 'b' \"c\" $HOME %h \\ ü"
    engine = {
        "argv": [sys.executable, "-c", shows, "--host", "{host}", "--port", "{port}", "--x={host}", odd],
        "env": {"ODD": odd},
        "secrets": {"API_KEY": parameter, "HF_TOKEN": secret},
        "port": 8123,
    }
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(engine))
    report = ("--report", str(tmp_path / "boot.json"))
    done = await run(node, aws_shim, "engine", str(file), *report, KEPT="yes")
    assert done.returncode == 0, done.stderr
    words, environment = json.loads(done.stdout)
    assert words == ["--host", "127.0.0.1", "--port", "8123", "--x=127.0.0.1", odd]
    assert environment["API_KEY"] == 'it\'s "secret" $HOME\n%n'
    assert (environment["HF_TOKEN"], environment["ODD"], environment["KEPT"]) == ("hf_1234", odd, "yes")
    assert "PYTHONPATH" not in environment

    engine["secrets"] = {"API_KEY": parameter + "-gone"}
    file.write_text(json.dumps(engine))
    done = await run(node, aws_shim, "engine", str(file), *report)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{parameter}-gone: status 400: " in done.stderr


def test_a_node_without_a_role_says_so(machine):
    with pytest.raises(Refused, match="the instance has no role"):
        Aws(Metadata(machine().url))


async def test_what_the_user_data_installs_runs(machine, aws_shim, assume, control, until, tmp_path):
    """The files of the cloud-config, below another root; the commands of its units, by a bare Python."""
    root, node = tmp_path / "root", machine()
    node.give_role("llama-node", assume(node.id))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = SimulatedEngine(SystemClock(), model_name="llama").command(
        EngineSpec(
            model="llama", served_name="llama", args=("--load-time", "0"), env={"PYTHONPATH": str(REPOSITORY)}
        )
    )
    setup = NodeSetup(
        pool="llama",
        command=command,
        port=port,
        report_url=control.url,
        trusted=control.certificate.read_text(),
    )
    for file in yaml.safe_load(unpacked(user_data(setup)))["write_files"]:
        path = root / file["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["content"])
    for name in ("agent", "engine"):
        (root / f"run/orchestrator-{name}").mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{root}/opt/orchestrator",
        "AWS_ENDPOINT_URL": aws_shim.url,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": node.url,
    }

    def commands(unit: str, key: str) -> list[str]:
        text = (root / f"etc/systemd/system/orchestrator-{unit}.service").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith(f"{key}=/usr/bin/python3")]
        line = line.partition("=")[2].replace("/usr/bin/python3", sys._base_executable)
        return shlex.split(re.sub(r"(?<=\s)/(opt|run)/", rf"{root}/\1/", line))

    processes = []
    try:
        first = await asyncio.to_thread(
            subprocess.run, commands("agent", "ExecStartPre"), env=environment, timeout=PATIENCE
        )
        assert first.returncode == 0
        for unit in ("agent", "engine"):
            started = await asyncio.to_thread(subprocess.Popen, commands(unit, "ExecStart"), env=environment)
            processes.append(started)
        await until(lambda: control.receiver.accepted >= 1)
        await until(lambda: control.receiver.report(node.id).metadata_error == "")

        async def healthy() -> bool:
            async with aiohttp.ClientSession() as http:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

        async with asyncio.timeout(PATIENCE):
            while not await healthy():  # noqa: ASYNC110 - a process is asked
                await asyncio.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)  # it is the engine itself that hears it
        assert await asyncio.to_thread(processes[1].wait, PATIENCE) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


# -- how a start goes --------------------------------------------------------------------------------------


@pytest.fixture
def starts(machine, aws_shim, tmp_path):
    """Starts engines as systemd does, one after another: (process, boot report)."""
    node = machine()
    boot = tmp_path / "run/boot.json"
    boot.parent.mkdir()

    def words(engine):
        file = tmp_path / "engine.json"
        file.write_text(json.dumps({"env": {}, "secrets": {}, "port": 8123, **engine}))
        return "engine", str(file), "--report", str(boot)

    async def started(**engine):
        done = await run(node, aws_shim, *words(engine), HOME=str(tmp_path))
        return done, json.loads(boot.read_text())

    def begun(**engine):
        return begin(node, aws_shim, *words(engine), HOME=str(tmp_path))

    started.node, started.boot, started.begun = node, boot, begun
    return started


def failed(report) -> list[str]:
    return [check["name"] for check in report["checks"] if not check["ok"]]


SHOWS = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


async def test_an_engine_that_is_not_there_is_reported_in_words(starts):
    done, report = await starts(argv=["/opt/vllm/bin/vllm"])
    assert (done.returncode, report["stage"], report["ok"]) == (1, "failed", False)
    assert report["detail"].startswith("engine: /opt/vllm/bin/vllm is not on this machine")
    assert failed(report) == ["engine"]
    assert f"node-start: failed: {report['detail']}" in done.stderr


async def test_a_machine_without_gpus_does_not_start_an_engine_that_wants_them(starts, tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho it started\n")
    program.chmod(0o755)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA L4, 580.1\n")
    (tools / "nvidia-smi").chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    needs = {"gpus": 4, "vllm": False, "weights": 0}
    # The checks ask the commands of this process, so the stand-in must be found by it.
    os.environ["PATH"], before = path["PATH"], os.environ["PATH"]
    try:
        done, report = await starts(argv=[str(program)], needs=needs)
        assert (done.returncode, done.stdout) == (1, "")
        assert "driver: the machine shows 1 GPUs and the engine wants 4" in report["detail"]
        done, report = await starts(argv=[str(program)], needs={**needs, "gpus": 1})
    finally:
        os.environ["PATH"] = before
    assert (done.returncode, done.stdout, report["stage"]) == (0, "it started\n", "start")


async def test_starts_that_fail_become_rare_and_say_why_meanwhile(starts):
    """Each start is a process of its own, so what is known of the last one stands in the report."""
    for number in range(2):
        _, report = await starts(argv=["/opt/vllm/bin/vllm"])
        assert report["restarts"] == number
    starts.boot.write_text(json.dumps({**report, "restarts": 8}))
    with starts.begun(argv=[sys.executable, "-c", "print('on')"]) as waits:
        try:
            async with asyncio.timeout(PATIENCE):
                while "; restart 9 follows in 300 s" not in starts.boot.read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            report = json.loads(starts.boot.read_text())
            assert (report["stage"], report["ok"]) == ("failed", False)
            assert report["detail"].startswith("engine: /opt/vllm/bin/vllm is not on this machine")
            assert failed(report) == ["engine"]
        finally:
            waits.kill()


async def test_path_begins_with_the_engines_own_directory(starts):
    done, report = await starts(argv=[sys.executable, "-c", SHOWS])
    _, environment = json.loads(done.stdout)
    assert environment["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    assert (report["stage"], report["ok"], failed(report)) == ("start", True, [])


async def test_the_engine_is_spread_over_the_gpus_of_the_machine(starts, tmp_path, monkeypatch):
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: NVIDIA L40S (UUID: GPU-$n)"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    done, _ = await starts(argv=[sys.executable, "-c", SHOWS, "--tensor-parallel-size", "{gpus}"])
    assert json.loads(done.stdout)[0] == ["--tensor-parallel-size", "4"]
    smi.write_text("#!/bin/sh\nexit 9\n")
    done, report = await starts(argv=[sys.executable, "-c", SHOWS, "{gpus}"])
    assert (done.returncode, report["stage"]) == (1, "failed")
    assert "nvidia-smi -L: status 9" in report["detail"]


async def test_weights_on_the_image_must_be_readable(starts, tmp_path):
    argv = [sys.executable, "-c", SHOWS, "serve", "{model}", "--served-model-name", "llama"]
    done, report = await starts(argv=argv, weights=str(tmp_path / "model"))
    assert (done.returncode, report["stage"]) == (1, "failed")
    assert "is not there, or the engine's user may not read it" in report["detail"]
    (tmp_path / "model").mkdir()
    done, report = await starts(argv=argv, weights=str(tmp_path / "model"))
    words, _ = json.loads(done.stdout)
    assert words == ["serve", str(tmp_path / "model"), "--served-model-name", "llama"]


async def test_weights_in_s3_are_there_before_the_engine_is(starts, aws_shim, assume, tmp_path):
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=aws_shim.url)
    s3.create_bucket(Bucket="node-start")
    s3.put_object(Bucket="node-start", Key="llama/config.json", Body=b"{}")
    starts.node.give_role("llama-node", assume(starts.node.id))
    argv = [sys.executable, "-c", SHOWS, "{model}", "--name={model}", "--host={host}"]
    done, report = await starts(argv=argv, weights="s3://node-start/llama")
    assert done.returncode == 0, done.stderr
    (model, name, host), _ = json.loads(done.stdout)
    assert (name, host) == (f"--name={model}", "--host=127.0.0.1")
    assert (Path(model) / "config.json").read_bytes() == b"{}"
    assert model.startswith(f"{tmp_path}/models/llama-")
    assert {"name": "weights", "ok": True, "text": f"{model} is complete"} in report["checks"]
    done, report = await starts(argv=argv, weights="s3://node-start/mistral")
    assert (done.returncode, report["stage"]) == (1, "failed")
    assert "nothing is there; correct weights" in report["detail"]


async def test_no_secret_is_in_the_report_or_the_log(starts, aws_shim, assume):
    ssm = boto3.client("ssm", region_name=REGION, endpoint_url=aws_shim.url)
    ssm.put_parameter(Name="/boot/key", Value="correct horse", Type="SecureString", Overwrite=True)
    arn = ssm.get_parameter(Name="/boot/key")["Parameter"]["ARN"]
    starts.node.give_role("llama-node", assume(starts.node.id))
    for argv in ([sys.executable, "-c", ""], ["/nowhere"]):
        done, report = await starts(argv=argv, secrets={"KEY": arn}, weights="/nowhere/model")
        assert "correct horse" not in json.dumps(report) + done.stderr + done.stdout


async def test_a_description_that_is_odd_is_reported_too(starts):
    for engine in ({"argv": []}, {"argv": ["x"], "port": None, "env": None}, {"argv": 5}):
        done, report = await starts(**engine)
        assert (done.returncode, report["stage"], report["ok"]) == (1, "failed", False)
        assert "Traceback" not in done.stderr
        starts.boot.unlink()


async def test_a_machine_gets_the_flags_of_its_instance_type(starts, tmp_path, monkeypatch):
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        '#!/bin/sh\n[ "$1" = -L ] && for n in 0 1; do echo "GPU $n: NVIDIA L40S"; done\n'
        '[ "$1" = -L ] || for n in 0 1; do echo "NVIDIA L40S, 580.1"; done\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    usual = [sys.executable, "-c", SHOWS, "-tp", "1"]
    here, there = "g6e.12xlarge", "p4d.24xlarge"
    large = {"argv": [sys.executable, "-c", SHOWS, "-tp", "{gpus}"], "gpus": 2}
    done, _ = await starts(argv=usual, on={here: large, there: {"argv": ["no"], "gpus": 8}})
    assert json.loads(done.stdout)[0] == ["-tp", "2"]
    done, _ = await starts(argv=usual, on={there: large})
    assert json.loads(done.stdout)[0] == ["-tp", "1"]
    done, report = await starts(argv=usual, on={here: {**large, "gpus": 8}})
    assert (done.returncode, report["stage"]) == (1, "failed")
    assert "shows 2 GPUs and the engine wants 8" in report["detail"]
