"""`orchestrator doctor` as a command: what it prints, its exit codes, and what --fix changes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from orchestrator.__main__ import main

DELAY = "deregistration_delay.timeout_seconds"
AWS = ("--only", "aws", "notices", "launch", "balancer")


def run(account: Any, *words: str) -> int:
    return main(["doctor", "--config", str(account.config()), *words])


def set_delay(account: Any, seconds: int) -> None:
    account.client("elbv2").modify_target_group_attributes(
        TargetGroupArn=account.target_group, Attributes=[{"Key": DELAY, "Value": str(seconds)}]
    )


def delay_of(account: Any) -> int:
    answer = account.client("elbv2").describe_target_group_attributes(TargetGroupArn=account.target_group)
    return int({entry["Key"]: entry["Value"] for entry in answer["Attributes"]}[DELAY])


def test_json_follows_its_schema_and_a_failure_is_exit_code_1(account, capsys):
    assert run(account, "--only", "aws", "balancer", "-o", "json") == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["schema"], view["ok"]) == ("doctor/1", True)
    assert {row["group"] for row in view["findings"]} == {"aws", "balancer"}
    set_delay(account, 300)
    assert run(account, "--only", "aws", "balancer", "-o", "json") == 1
    view = json.loads(capsys.readouterr().out)
    (failed,) = [row for row in view["findings"] if row["state"] == "fail"]
    assert (view["ok"], failed["group"], failed["check"]) == (False, "balancer", "target-group")
    assert failed["advice"]


def test_a_table_says_what_to_do_and_counts(account, capsys):
    set_delay(account, 300)
    assert run(account, "--only", "balancer") == 1
    out = capsys.readouterr().out
    assert "fail  balancer/target-group  llama: the deregistration delay of 300 s" in out
    assert "-> run `orchestrator doctor --only balancer --fix`" in out
    assert out.rstrip().endswith("1 ok, 1 failure.")


def test_fix_asks_and_sets_the_delay(account, capsys, monkeypatch):
    set_delay(account, 300)
    answers = io.StringIO("no\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    assert run(account, "--only", "balancer", "--fix") == 1
    assert "from 300 s to 90 s? [y/N]" in capsys.readouterr().err
    assert delay_of(account) == 300
    answers.seek(0)
    answers.write("yes\n")
    answers.seek(0)
    assert run(account, "--only", "balancer", "--fix") == 0
    assert delay_of(account) == 90


def test_fix_does_nothing_unasked_and_nothing_that_is_not_needed(account, capsys, monkeypatch):
    set_delay(account, 300)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(account, "--only", "balancer", "--fix") == 1
    assert "--yes" in capsys.readouterr().err
    assert delay_of(account) == 300
    assert run(account, "--only", "balancer", "--fix", "--yes") == 0
    assert delay_of(account) == 90
    assert run(account, "--only", "balancer", "--fix", "--yes") == 0
    assert "nothing that --fix can fix" in capsys.readouterr().err


def test_fix_that_is_not_allowed_says_so(account, capsys):
    set_delay(account, 300)
    account.shim.order("set", denied=["elasticloadbalancing:ModifyTargetGroupAttributes"])
    assert run(account, "--only", "balancer", "--fix", "--yes") == 1
    assert "nothing was changed" in capsys.readouterr().err
    assert delay_of(account) == 300


def test_fix_needs_something_to_mend(tmp_path, capsys):
    assert main(["doctor", "--fix"]) == 2
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = 2\n")
    assert main(["doctor", "--config", str(file), "--fix"]) == 1
    assert "no pool uses a target group" in capsys.readouterr().err


def test_a_faulty_configuration_is_a_failure_of_its_own(tmp_path, capsys):
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = -1\n")
    assert main(["doctor", "--config", str(file), "--only", "config", "aws"]) == 1
    out = capsys.readouterr().out
    assert "fail" in out
    assert "pool.llama.replicas" in out
    assert "the configuration has errors" in out


def test_advice_is_a_doubt_and_no_failure(tmp_path, capsys):
    file = tmp_path / "pool.toml"
    pool = "[pool.llama]\nreplicas = 2\nmodel = 'org/llama:Q4'\n"
    file.write_text(f"{pool}[pool.llama.engine]\nkind = 'llamacpp'\n")
    assert main(["doctor", "--config", str(file), "--only", "config", "-o", "json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [one for one in findings if one["check"] == "advice"]
    assert found["state"] == "warn"
    assert "llama.cpp answers 4 requests at once" in found["text"]
    file.write_text(f"{pool}accepted = ['slots']\n[pool.llama.engine]\nkind = 'llamacpp'\n")
    assert main(["doctor", "--config", str(file), "--only", "config", "-o", "json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [one["state"] for one in findings if one["check"] == "advice"] == ["ok"]


def test_a_group_that_does_not_exist_is_wrong_usage(capsys):
    assert main(["doctor", "--only", "everything"]) == 2


@pytest.mark.slow
def test_a_whole_run_as_a_process(account):
    command = [sys.executable, "-m", "orchestrator", "doctor", "--config", str(account.config()), *AWS]
    sound = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert sound.stderr == ""
    summary = " ".join(sound.stdout.split())
    assert re.search(r" \d+ ok, \d skipped\. No node runs, so nobody has seen one boot", summary), (
        sound.stdout
    )
    account.shim.order("set", denied=["ec2:RunInstances"])
    account.client("sqs").set_queue_attributes(QueueUrl=account.queue, Attributes={"Policy": ""})
    broken = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert broken.returncode == 1
    assert "fail     aws/permissions" in broken.stdout
    assert "fail     notices/queue" in broken.stdout
