"""What reaches the console: the boot, thinned and without secrets, and nothing once the engine serves."""

import json
import os
import socket
import subprocess
import sys

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_bench import REPOSITORY

from cloud.node_console import LONGEST_LINE, Engine, Thinner, cleaned, copied

PATIENCE = 60.0
REGION = "us-east-1"


def test_lines_are_thinned_and_what_is_left_out_is_told():
    thinner = Thinner(0.0, burst=3, rate=1.0)
    assert [thinner.lines(str(n), 0.0) for n in range(5)] == [["0"], ["1"], ["2"], [], []]
    assert thinner.lines("5", 1.0) == ["(2 lines not shown)", "5"]
    assert thinner.lines("6", 1.0) == []
    assert thinner.lines("7", 0.5) == []  # a clock that runs back gives nothing
    assert thinner.lines("8", 100.0) == ["(2 lines not shown)", "8"]


@given(st.lists(st.tuples(st.floats(0, 1), st.text(max_size=5)), max_size=200))
def test_no_noise_exceeds_the_rate(steps):
    thinner, now, shown = Thinner(0.0, burst=10, rate=2.0), 0.0, 0
    for pause, text in steps:
        now += pause
        shown += len([line for line in thinner.lines(text, now) if "not shown" not in line])
    assert shown <= 10 + 2.0 * now + 1


@given(st.text(min_size=4), st.text(), st.text())
def test_no_secret_passes_and_no_line_is_long(secret, before, after):
    found = cleaned(before + secret + after, [secret])
    assert len(found) <= LONGEST_LINE
    assert found.isprintable()
    assert secret not in found or secret in "[secret]"


@pytest.mark.parametrize(
    "token", ["hf_AbCdEfGhIjKlMnOp", "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "Bearer abc.def"]
)
def test_what_looks_like_a_token_is_hidden_though_nobody_knows_it(token):
    assert cleaned(f"got {token} from env", []) == "got [secret] from env"


class Known:
    """An engine of which all is known."""

    serves, known = False, True
    secrets = frozenset({"s3cr3t"})

    def look(self, now):
        pass


def test_nothing_is_copied_while_the_engine_serves():
    engine = Known()

    def lines():
        yield "loading"
        engine.serves = True
        yield "a user asked: who am I"
        engine.serves = False
        yield "loading again with s3cr3t"

    found = list(copied(lines(), engine, Thinner(0.0), lambda: 0.0))
    assert found == ["loading", "loading again with [secret]"]


def test_until_the_secrets_are_known_only_our_own_lines_are_copied():
    engine = Known()
    engine.known = False
    lines = ["node-disks: disks: none", "TOKEN=x", "node-start: failed: driver", " node-start: no"]
    assert list(copied(lines, engine, Thinner(0.0), lambda: 0.0)) == [lines[0], lines[2]]


class Imds:
    """Metadata that hold an address, and no role."""

    def get(self, path):
        return "127.0.0.1" if path == "meta-data/local-ipv4" else None


def test_whether_the_engine_serves_is_found_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        engine = Engine({"secrets": {}, "port": server.getsockname()[1]}, Imds())
        engine.look(0.0)
        assert engine.serves
    engine.look(1.0)
    assert engine.serves  # not asked for every line
    engine.look(5.0)
    assert not engine.serves
    assert engine.known


@pytest.mark.parametrize("kept", ["correct horse\r\nbattery\n", "  correct horse\nbattery \n\n"])
def test_blanks_around_a_secret_do_not_let_it_pass(monkeypatch, kept):
    """A secret is stored as an editor left it, and an engine says it as it is."""
    monkeypatch.setattr("cloud.node_aws.Aws.__init__", lambda *_: None)
    monkeypatch.setattr("cloud.node_aws.Aws.secret", lambda *_: kept)
    engine = Engine({"secrets": {"A": "arn:aws:ssm:us-east-1:1:parameter/x"}, "port": 1}, Imds())
    lines = ["401 for correct horse", "with battery, a b"]
    found = list(copied(lines, engine, Thinner(0.0), lambda: 0.0))
    assert found == ["401 for [secret]", "with [secret], a b"]


def test_secrets_that_cannot_be_fetched_stay_unknown():
    engine = Engine({"secrets": {"A": "arn:aws:ssm:us-east-1:1:parameter/x"}, "port": 1}, Imds())
    engine.look(0.0)
    assert not engine.known


@pytest.mark.slow
def test_the_program_masks_what_the_engine_gets(machine, aws_shim, tmp_path):
    """The real program, behind a journal that holds a secret."""
    ssm = boto3.client("ssm", region_name=REGION, endpoint_url=aws_shim.url)
    ssm.put_parameter(Name="/console/key", Value="correct horse", Type="SecureString", Overwrite=True)
    arn = ssm.get_parameter(Name="/console/key")["Parameter"]["ARN"]
    sts = boto3.client("sts", region_name=REGION, endpoint_url=aws_shim.url)
    node = machine()
    role = "arn:aws:iam::123456789012:role/r"
    node.give_role("r", sts.assume_role(RoleArn=role, RoleSessionName=node.id)["Credentials"])
    engine = tmp_path / "engine.json"
    engine.write_text(json.dumps({"secrets": {"KEY": arn}, "port": 1}))
    journal = tmp_path / "bin/journalctl"
    journal.parent.mkdir()
    journal.write_text(
        '#!/bin/sh\necho "node-start: checks: begins"\necho "KEY=correct horse battery"\necho "$@"\n'
    )
    journal.chmod(0o755)
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-m",
            "cloud.node_console",
            engine,
            "orchestrator-engine",
            "orchestrator-disks",
        ],
        env={
            "PATH": f"{journal.parent}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": aws_shim.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": node.url,
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1  # the journal ended: the unit starts it again
    assert done.stdout.splitlines() == [
        "node-start: checks: begins",
        "KEY=[secret] battery",
        "-fqb -n all -o cat -uorchestrator-engine -uorchestrator-disks",
    ]
