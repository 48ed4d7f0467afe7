"""Every command against a control API: what it prints, what it asks for, how it exits."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator import monitoring, schemas
from orchestrator.cli import shared, status
from orchestrator.cli.app import COMMANDS, HIDDEN, build_app
from orchestrator.schemas import generate
from orchestrator.views.api import PoolState
from policies.verdict import State

USER = pwd.getpwuid(os.getuid()).pw_name
DOCS = Path(__file__).parents[3] / "docs/reference"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCHESTRATOR_SOCKET", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def ask(run: Run, api: Any) -> Run:
    """Run a command line against the sample API."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return run(*arguments, "--socket", str(api.socket))

    return call


def check_schema(name: str, text: str) -> None:
    """The text is JSON of the shape that the schema of that name describes."""
    TypeAdapter(generate._described(generate.VIEWS[name], {})).validate_python(json.loads(text), strict=True)


# What every command must have


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_and_shows_an_example(command: str, run: Run) -> None:
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: orchestrator {command}")
    examples = out.split("For example:")[1]
    assert f"orchestrator {command}" in examples
    without = {"run", "gateway", "local-cloud", "schema", "completion", "trace convert", "trace synthesise"}
    without |= {"journal copy", "journal export", "aws policy", "rules", "dashboard", "balancer example"}
    assert "[default: table]" in out.split("--output, -o")[-1] or command in without


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command: str) -> None:
    found = build_app(complete=True)
    for word in command.split():
        found = found[word]
    arguments = found.assemble_argument_collection()
    shown = [argument for argument in arguments if argument.show and argument.parse]
    assert [argument.name for argument in shown if not argument.parameter.help] == []


def test_overview_lists_every_command_with_its_summary(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert (f"\n  {command.split()[0]}: " in out) is (command not in HIDDEN)
    assert "Exit codes: 0 ok, 1 error, 2 usage, 3 daemon unreachable, 4 degraded" in out
    assert run()[:2] == (0, out)


def test_every_command_is_in_the_reference() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"## orchestrator {command}\n" not in text] == []


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("orchestrator 0.")


# Status


def test_status(ask: Run, api: Any) -> None:
    code, out, err = ask("status")
    assert (code, err) == (4, "")
    assert out.startswith("llama  DEGRADED  9/10 serving  9 ready")
    assert out.rstrip().endswith(f"orchestrator events -f --socket {api.socket}")


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["ok"], 0),
        (["starting"], 4),
        (["degraded"], 4),
        (["below-floor"], 5),
        (["paused"], 6),
        (["paused", "degraded"], 4),
        (["down"], 7),
        (["all-on-demand"], 8),
        (["all-on-demand", "paused"], 6),
        (["below-floor", "paused", "down"], 7),
        (["ok", "below-floor", "degraded"], 5),
        (["of-a-later-version"], 4),
        ([], 0),
    ],
)
def test_exit_code_is_the_state_of_the_worst_pool(states: list[str], code: int, ask: Run, api: Any) -> None:
    pool = api.status["pools"][0]
    api.status["pools"] = [pool | {"state": state} for state in states]
    assert ask("status")[0] == code
    assert ask("status", "-o", "json")[0] == code
    assert ask("status", "--no-exit-code")[0] == 0


def test_status_says_units_where_they_differ_from_nodes(ask: Run, api: Any) -> None:
    pool = api.status["pools"][0]
    assert "UNITS" not in ask("nodes", "-o", "wide")[1]
    pool |= {"units": {"p5.48xlarge": 8}, "ready": 72, "wanted": 80, "ready_nodes": 9}
    for node in pool["nodes"]:
        node["units"] = 8
    assert "9/80 units serving  72 ready (9 nodes)" in ask("status")[1]
    assert "UNITS" in ask("nodes", "-o", "wide")[1].splitlines()[0]


def test_status_as_json_is_the_answer_itself(ask: Run, api: Any) -> None:
    _, out, _ = ask("status", "-o", "json")
    assert json.loads(out) == api.status
    check_schema("status", out)


def test_status_wide(ask: Run) -> None:
    assert "TOKEN" in ask("status", "-o", "wide")[1]


@pytest.mark.parametrize(
    "flags", [["--watch"], ["-w", "0.3"], ["--watch=5"], ["--watch", "2s", "-o", "json"]]
)
def test_watch_shows_again_and_again_until_ctrl_c(
    flags: list[str], ask: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(shared, "wait", wait)
    code, out, _ = ask("status", *flags)
    assert code == 0
    assert waits == [{"--watch": 2.0, "-w": 0.3, "--watch=5": 5.0}[flags[0]]] * 3
    if "json" in flags:
        assert [json.loads(line)["schema"] for line in out.splitlines()] == ["status/1"] * 3
    else:
        assert out.count("llama  DEGRADED") == 3
        assert "\x1b" not in out


def test_watch_waits_for_a_daemon_that_restarts(ask: Run, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = api.socket.with_suffix(".away")
    steps: list[Callable[[], object]] = [lambda: api.socket.rename(moved), lambda: moved.rename(api.socket)]

    def wait(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(shared, "wait", wait)
    code, out, err = ask("status", "--watch")
    assert code == 0
    assert out.count("llama  DEGRADED") == 2
    assert err.count("there is no such socket") == 1


def test_terminal_gets_colours_and_its_own_width(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "is_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    coloured = ask("status")[1]
    assert "\x1b[1;33mDEGRADED" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = ask("status")[1]
    assert "\x1b" not in plain
    assert max(len(line) for line in plain.splitlines()[:-2]) <= 80


def test_pipe_gets_whole_lines(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    first = ask("status")[1].splitlines()[0]
    assert "llama  DEGRADED" in first
    assert "llama-70b" in first


# The other looks


def test_nodes(ask: Run) -> None:
    code, out, _ = ask("nodes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("i-")][:2] == ["i-0c41", "i-0f22"]
    assert out.count("\ni-") == 11
    assert ask("nodes", "--market", "spot", "--phase", "draining")[1].splitlines()[1].startswith("i-0c41")
    assert ask("nodes", "--phase", "gone")[1] == "No nodes.\n"


def test_nodes_as_json(ask: Run, api: Any) -> None:
    out = ask("nodes", "--market", "on-demand", "-o", "json")[1]
    check_schema("nodes", out)
    found = json.loads(out)["nodes"]
    assert {node["market"] for node in found} == {"on-demand"}
    assert len(found) == 4


def test_node_by_the_beginning_of_its_id(ask: Run, api: Any) -> None:
    code, out, _ = ask("node", "i-0c")
    assert code == 0
    assert out.startswith("i-0c41  DRAINING")
    check_schema("node", ask("node", "i-0c", "-o", "json")[1])


def test_node_prefix_that_fits_several(ask: Run) -> None:
    code, _, err = ask("node", "i-000")
    assert code == 1
    assert err == (
        "orchestrator: i-000 fits 9 nodes (i-0000, i-0001, i-0002, i-0004, i-0005, ...); "
        "write more of the id\n"
    )


def test_node_id_that_is_the_beginning_of_another(ask: Run, api: Any) -> None:
    api.status["pools"][0]["nodes"][0]["id"] = "i-0c4"
    assert ask("node", "i-0c4")[1].startswith("i-0c4  ")


def test_unknown_node_is_the_daemons_to_judge(ask: Run) -> None:
    code, _, err = ask("node", "i-ffff")
    assert (code, err) == (1, "orchestrator: no node i-ffff is known; see `orchestrator nodes`\n")


def test_events(ask: Run, api: Any) -> None:
    code, out, _ = ask("events", "--limit", "2")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["EVENT", "notice-received", "detached"]
    check_schema("events", ask("events", "-o", "json")[1])
    ask("events", "--after", "1", "--node", "i-0c")
    assert api.gets[-1] == "/v1/events?after=1&limit=50&node=i-0c41"


@pytest.mark.parametrize("output", ["table", "json"])
def test_follow_prints_each_event_once_and_survives_a_restart(
    output: str, ask: Run, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = api.get
    seen: list[str] = []
    moved = api.socket.with_suffix(".away")

    def get(path: str, query: dict[str, str]) -> tuple[int, Any]:
        if "wait" in query:
            seen.append(query["after"])
            if len(seen) == 2:
                api.events = [*api.events, api.events[-1] | {"seq": 5, "kind": "drained"}]
            if len(seen) in (3, 4):
                api.socket.rename(moved)
        return answers(path, query)

    def wait(seconds: float) -> None:
        if seconds < 1.0:
            return  # after an empty answer, not after a lost daemon
        moved.rename(api.socket)
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(api, "get", get)
    monkeypatch.setattr(shared, "wait", wait)
    code, out, err = ask("events", "-f", "-n", "2", "-o", output)
    assert code == 0
    lines = out.splitlines()
    kinds = [json.loads(line)["kind"] if output == "json" else line.split()[1] for line in lines]
    assert kinds == ["notice-received", "detached", "drained"]
    assert seen[:3] == ["4", "4", "5"]
    assert "waiting for it" in err


def test_plan(ask: Run) -> None:
    code, out, _ = ask("plan")
    assert code == 0
    assert out.startswith("llama  1 launch, 1 drain, 1 held back")
    check_schema("plan", ask("plan", "-o", "json")[1])


def test_plan_with_a_detailed_exit_code(ask: Run, api: Any) -> None:
    assert ask("plan", "--detailed-exit-code")[0] == 10
    api.plan["pools"][0]["actions"] = []
    assert ask("plan", "--detailed-exit-code")[0] == 0


def test_explain(ask: Run, api: Any) -> None:
    assert ask("explain", "why", "not", "spot")[1] == "why not spot\nBecause of this.\n"
    assert ask("explain")[1].startswith("pool\n")
    check_schema("explain", ask("explain", "capacity", "-o", "json")[1])


# Operating


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["drain", "i-0c"], "/v1/nodes/i-0c41/drain", {"reason": ""}),
        (
            ["drain", "i-0c41", "-m", "kernel", "--deadline", "2m"],
            "/v1/nodes/i-0c41/drain",
            {"reason": "kernel", "deadline_s": 120.0},
        ),
        (["pause"], "/v1/pause", {"reason": "", "by": USER}),
        (
            ["pause", "--for", "2h", "--reason", "x"],
            "/v1/pause",
            {"reason": "x", "for_s": 7200.0, "by": USER},
        ),
        (["resume"], "/v1/resume", {"by": USER}),
    ],
)
def test_operating(arguments: list[str], path: str, body: dict[str, Any], ask: Run, api: Any) -> None:
    code, out, _ = ask(*arguments)
    assert code == 0
    assert api.posts == [(path, body)]
    assert out.startswith(f"done: {path}\nNext: orchestrator ")
    assert json.loads(ask(*arguments, "-o", "json")[1]) == {"text": f"done: {path}"}


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    assert shared.user_name() == "uid 3999999999"


def test_refused_command_is_one_line(ask: Run, api: Any) -> None:
    code, out, err = ask("undrain", "i-0001", "--reason", "done")
    assert (code, out) == (1, "")
    assert err == "orchestrator: i-0001 is not drained by an operator; there is nothing to take back\n"
    assert api.posts == [("/v1/nodes/i-0001/undrain", {"reason": "done"})]


def test_drain_can_wait_until_the_node_is_out(ask: Run, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = next(node for node in api.status["pools"][0]["nodes"] if node["id"] == "i-0c41")
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            node["phase"] = "terminating"

    monkeypatch.setattr(shared, "wait", wait)
    code, _, err = ask("drain", "i-0c41", "--wait")
    assert (code, err, len(looks)) == (0, "i-0c41 is out of service.\n", 2)


def test_wait_ends_with_ctrl_c_and_the_drain_goes_on(
    ask: Run, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shared, "wait", wait)
    assert ask("drain", "i-0c41", "--wait")[0] == 0
    assert [path for path, _ in api.posts] == ["/v1/nodes/i-0c41/drain"]


CHANGES = [
    {"key": "pool.llama.replicas", "line": 7, "before": "10", "after": "12", "effect": "now"},
    {
        "key": "pool.llama.gateway.queue_limit",
        "line": 20,
        "before": "1024",
        "after": "9",
        "effect": "gateway",
    },
]


def test_reload_shows_what_changed_and_what_follows(ask: Run, api: Any) -> None:
    plan = api.plan["pools"][0]
    size = "10 -> 12 nodes, about $16.00 -> $20.00 an hour, at most $36.00 -> $42.00"
    api.reload.update(
        outcome="applied", changes=CHANGES, size=size, plan=plan, text="/etc/pool.toml is in force."
    )
    code, out, err = ask("reload", "--wait")
    assert (code, err) == (0, "")
    assert api.posts == [("/v1/reload", {"wait": True, "dry_run": False, "force": False})]
    assert out.splitlines()[:4] == [
        "/etc/pool.toml is in force.",
        "  line 7: pool.llama.replicas: 10 -> 12",
        "  line 20: pool.llama.gateway.queue_limit: 1024 -> 9  (the gateway is replaced)",
        f"  size: {size}",
    ]
    assert "6 of 7 wanted spot nodes" in out, "the plan"
    check_schema("reload", ask("reload", "-o", "json")[1])


def test_reload_without_a_change_is_one_line(ask: Run, api: Any) -> None:
    api.reload.update(plan=api.plan["pools"][0])
    assert ask("reload") == (0, "/etc/pool.toml says what is in force already.\n", "")


def test_a_rejected_reload_says_why_and_fails(ask: Run, api: Any) -> None:
    problem = {"file": "/etc/pool.toml", "line": 7, "key": "pool.llama.replicas", "text": "is too small"}
    api.reload.update(
        outcome="rejected", problems=[problem], text="/etc/pool.toml was rejected; the one before stays."
    )
    code, out, err = ask("reload", "--wait")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "/etc/pool.toml:7: pool.llama.replicas: is too small",
        "/etc/pool.toml was rejected; the one before stays.",
    ]
    code, out, _ = ask("reload", "-o", "json")
    assert code == 1
    check_schema("reload", out)


# Wrong usage and missing daemons


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["nodes"], ["node", "i"], ["events", "-f"], ["plan"], ["explain"], ["drain", "i"],
     ["undrain", "i"], ["pause"], ["resume"], ["reload"]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_no_daemon(arguments: list[str], run: Run, short_dir: Path) -> None:
    code, out, err = run(*arguments, "--socket", str(short_dir / "none.sock"))
    assert (code, out) == (3, "")
    assert err.startswith("orchestrator: the daemon cannot be reached on ")
    assert err.count("\n") == 1


def test_socket_from_the_environment_and_from_the_file(
    run: Run, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = api.socket.parent / "pool.toml"
    config.write_text("[daemon]\nstate_dir = '.'\n[pool.a]\nreplicas = 1\n", encoding="utf-8")
    code, out, _ = run("status", "--config", str(config))
    assert code == 4
    assert f"--config {config}" in out
    monkeypatch.setenv("ORCHESTRATOR_SOCKET", str(api.socket))
    assert run("status")[0] == 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["frobnicate"], ", ...; see `orchestrator --help`"),
        (["statsu"], 'Unknown command "statsu". Did you mean "status"?'),
        (["status", "--wathc"], "Unknown option: --wathc"),
        (["status", "-o", "yaml"], 'Invalid value "yaml" for -o. Choose from: "table", "wide", "json"'),
        (["status", "--watch=soon"], '"soon" is not a duration; write a number with a unit'),
        (["status", "extra"], "Unused Tokens: ['extra']"),
        (["node"], "parameter NODE requires an argument"),
        (["drain", "i-0c41", "--deadline", "2"], '"2" has no unit; write "2s" for seconds'),
        (["events", "--limit", "0"], "Must be >= 1"),
        (["events", "--limit", "x"], "--limit"),
        (["demo", "--duration", "1"], "Must be >= 10"),
        (["demo", "--nodes", "0"], "Must be >= 1"),
        (["demo", "--trace", "no/such/directory"], "does not exist"),
        (["run"], "parameter --config requires an argument"),
        (["completion", "tcsh"], 'Choose from: "bash", "zsh", "fish"'),
        (["schema", "nothing"], "there is no schema 'nothing'; write one of "),
    ],
)
def test_wrong_usage(arguments: list[str], complaint: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


# Setting up


def test_validate_says_what_a_file_means(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = 10\nlimits.spend_per_hour = 20\nstandby.hot = 1\n")
    code, out, err = run("validate", str(file))
    assert (code, err) == (0, "")
    assert out.startswith(f"OK {file}\n")
    assert "7 on spot and an on-demand floor of 3 (70% spot)" in out
    assert "at most 13 live at once, for at most $20.00 an hour" in out
    assert "Standby: 1 hot" in out
    view = run("validate", str(file), "-o", "json")[1]
    check_schema("validate", view)
    assert json.loads(view)["pools"][0]["spot_wanted"] == 7


def test_validate_shows_every_fault(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = -1\nspot_share = 70\n")
    code, out, err = run("validate", str(file))
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"{file}:2: pool.llama.replicas: -1 is too small; write at least 0"
    assert err.splitlines()[-1] == f"2 errors in {file}"
    code, out, err = run("validate", str(file), "-o", "json")
    assert (code, err) == (1, "")
    check_schema("validate", out)
    assert [problem["line"] for problem in json.loads(out)["problems"]] == [2, 3]


def test_validate_warns_and_still_accepts(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = 10\nlimits.surge = 0\n")
    code, _, err = run("validate", str(file))
    assert code == 0
    assert err.startswith(f"warning: {file}:3: pool.llama.limits.surge: ")
    view = json.loads(run("validate", str(file), "-o", "json")[1])
    assert [warning["line"] for warning in view["warnings"]] == [3]


@pytest.mark.parametrize("command", ["run", "gateway", "local-cloud"])
def test_a_faulty_file_stops_every_process_with_its_faults(command: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = -1\n")
    code, out, err = run(command, "--config", str(file))
    assert (code, out) == (1, "")
    assert err == f"{file}:2: pool.llama.replicas: -1 is too small; write at least 0\n"


def test_schema(run: Run) -> None:
    assert run("schema")[1].split() == schemas.names()
    for name in schemas.names():
        code, out, _ = run("schema", name)
        assert code == 0
        assert json.loads(out)["$id"] == f"urn:spot-orchestrator:{name}"


def test_rules_are_printed_as_they_are_shipped(run: Run) -> None:
    assert run("rules") == (0, monitoring.read("rules.yaml"), "")
    code, out, _ = run("rules", "--runbooks", "https://wiki.example/runbooks")
    assert code == 0
    assert "runbook_url: https://wiki.example/runbooks/OrchestratorDaemonDown.md\n" in out
    assert monitoring.RUNBOOKS not in out


def test_rules_are_written_beside_examples_that_are_yours(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    code, out, err = run("rules", "--to", str(folder))
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(folder / name) for name in monitoring.FILES]
    (folder / "prometheus.yaml").write_text("mine")
    (folder / "rules.yaml").write_text("of an older version")
    code, out, err = run("rules", "--to", str(folder))
    assert code == 0
    assert "prometheus.yaml is there already and is left as it is" in err
    assert (folder / "prometheus.yaml").read_text() == "mine"
    assert (folder / "rules.yaml").read_text() == monitoring.read("rules.yaml")
    (tmp_path / "file").touch()
    code, _, err = run("rules", "--to", str(tmp_path / "file" / "below"))
    assert code == 1
    assert "cannot be written" in err


@pytest.mark.debian("promtool", package="prometheus")
def test_rules_are_checked_by_promtool(run: Run) -> None:
    code, out, err = run("rules", "--check")
    assert (code, out) == (0, monitoring.read("rules.yaml"))
    assert re.fullmatch(r"SUCCESS: \d+ rules found\n", err)


def test_rules_are_not_checked_without_promtool(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = run("rules", "--check")
    assert (code, out) == (1, "")
    assert "promtool is not installed" in err


def test_dashboard_is_json(run: Run) -> None:
    code, out, err = run("dashboard")
    assert (code, err) == (0, "")
    assert json.loads(out)["title"] == "Orchestrator"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, run: Run) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    words = [word for command in COMMANDS if command not in HIDDEN for word in command.split()]
    assert [word for word in words if word not in out] == []


def test_bad_answers_do_not_pass_the_schema_check() -> None:
    with pytest.raises(ValidationError):
        check_schema("status", "{}")


def test_codes_of_states_are_those_in_the_help() -> None:
    assert (shared.OK, shared.ERROR, shared.USAGE, shared.UNREACHABLE) == (0, 1, 2, 3)
    codes = {shared.OK, shared.DEGRADED, shared.BELOW_FLOOR, shared.PAUSED, shared.DOWN}
    codes.add(shared.ALL_ON_DEMAND)
    assert set(status._CODES.values()) == codes == {0, 4, 5, 6, 7, 8}
    assert set(status._CODES) == set(get_args(PoolState)) == {str(state) for state in State}
