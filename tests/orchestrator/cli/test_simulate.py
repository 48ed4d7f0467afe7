"""`orchestrator simulate` and `orchestrator trace`, in this process and as processes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from orchestrator.schemas import generate

ROOT = Path(__file__).parents[3]
TRACES = ROOT.parent / "shared" / "traces"

Run = Callable[..., tuple[int, str, str]]

SCORE = {
    "cost_ratio",
    "capacity_availability",
    "time_availability",
    "mean_spot_share",
    "preemptions",
    "spot_launches",
    "on_demand_launches",
    "worst_shortfall_s",
    "shortfall_node_hours",
    "steps_simulated",
    "trace_hash",
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A configuration of six nodes."""
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = 6\n")
    return str(file)


@pytest.fixture
def market(tmp_path: Path, run: Run) -> str:
    """A short synthetic set on disk."""
    code, _, err = run(
        "trace", "synthesise", "-o", str(tmp_path / "sets" / "one"), "--days", "0.5", "--seed", "5"
    )
    assert (code, err) == (0, "")
    return str(tmp_path / "sets" / "one")


def checked(name: str, text: str) -> dict[str, Any]:
    """The JSON, which must be as the schema of that name says."""
    value: dict[str, Any] = json.loads(text)
    TypeAdapter(generate._described(generate.VIEWS[name], {})).validate_python(value, strict=True)
    return value


# -- simulate --------------------------------------------------------------------------------------


def test_the_users_own_pool_beside_the_baselines(run: Run, file: str, market: str) -> None:
    code, out, err = run("simulate", "-c", file, "--trace", market, "--jobs", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(
        "llama on synthetic-5: 6 nodes wanted, 0.5 days, 6 zones, start 180 s, notice 120 s"
    )
    assert lines[1].split()[:2] == ["POLICY", "COST"]
    assert lines[2].startswith("pool ")
    assert "* the cheapest baseline that has as much ready as the pool" in out
    assert "The pool would have cost $" in out
    assert "spot nodes were taken away" in out
    for name in ("all on-demand", "spot even spread", "static 70/30", "SpotHedge N=1", "omniscient bound"):
        assert any(line.startswith(name) for line in lines), name


def test_json_has_every_figure(run: Run, file: str, market: str) -> None:
    code, out, err = run("simulate", "-c", file, "-t", market, "-j", "1", "-o", "json", "--cold-start", "90s")
    assert (code, err) == (0, "")
    view = checked("simulate", out)
    assert (view["schema"], view["pool"], view["replicas"], view["seed"]) == ("simulate/1", "llama", 6, 1)
    assert (view["spot_start_s"], view["on_demand_start_s"], view["notice_s"]) == (90.0, 90.0, 120.0)
    (found,) = view["markets"]
    assert (found["measured_hours"], len(found["zones"])) == (10.0, 6)
    for result in found["results"]:
        assert set(result) >= SCORE
        if result["kind"] != "bound":
            assert None not in [result[key] for key in SCORE]
            assert len(result["trace_hash"]) == 64
    assert view["mean"] == []
    assert len(view["notes"]) >= 3


def test_several_sets_get_a_table_each_and_their_means(run: Run, file: str, market: str) -> None:
    sets = Path(market).parent
    assert run("trace", "synthesise", "-o", str(sets / "two"), "--days", "0.4", "--seed", "6")[0] == 0
    arguments = ("simulate", "-c", file, "--trace", str(sets), "--policy", "pool", "all", "-j", "1")
    code, out, _ = run(*arguments, "-o", "json")
    assert code == 0
    view = checked("simulate", out)
    assert [m["name"] for m in view["markets"]] == ["synthetic-5", "synthetic-6"]
    assert [m["policy"] for m in view["mean"]] == ["pool", "all on-demand"]
    _, out, _ = run(*arguments)
    assert "All 2 markets: means" in out


def test_sets_without_the_zones_are_left_out_and_named(run: Run, file: str, market: str) -> None:
    sets = Path(market).parent
    assert run("trace", "synthesise", "-o", str(sets / "two"), "--days", "0.4", "--regions", "1")[0] == 0
    arguments = ("simulate", "-c", file, "--trace", str(sets), "--policy", "all", "-j", "1", "--zones")
    code, out, err = run(*arguments, "syn-2a", "syn-2b")
    assert code == 0
    assert "llama on synthetic-5: 6 nodes wanted, 0.5 days, 2 zones" in out
    assert "synthetic-1" not in out
    assert err.startswith("left out: set 'synthetic-1' has no zone like syn-2a, syn-2b")


def test_without_a_trace_the_synthetic_market_is_played(run: Run, file: str) -> None:
    code, out, _ = run("simulate", "-c", file, "--days", "0.2", "--seed", "9", "-p", "pool", "-j", "1")
    assert code == 0
    assert out.startswith("llama on synthetic-9: 6 nodes wanted, 0.2 days")


def test_only_the_pool(run: Run, file: str, market: str) -> None:
    code, out, _ = run("simulate", "-c", file, "-t", market, "--no-baselines", "-o", "json", "-j", "1")
    assert code == 0
    assert [r["policy"] for r in json.loads(out)["markets"][0]["results"]] == ["pool"]


def test_another_seed_takes_other_nodes(run: Run, file: str, market: str) -> None:
    """Twelve nodes: six are spread so evenly that a zone never has to choose."""
    Path(file).write_text("[pool.llama]\nreplicas = 12\n")

    def hash_of(seed: str) -> str:
        _, out, _ = run("simulate", "-c", file, "-t", market, "-p", "pool", "-o", "json", "--seed", seed)
        text: str = json.loads(out)["markets"][0]["results"][0]["trace_hash"]
        return text

    assert hash_of("1") == hash_of("1")
    assert len({hash_of(seed) for seed in "123456"}) > 2, "two seeds may draw the same few nodes, six do not"


def test_a_picture_for_each_market(run: Run, file: str, market: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    arguments = ["simulate", "-c", file, "-t", market, "-p", "pool", "-j", "1", "--plot"]
    code, _, err = run(*arguments, str(tmp_path / "out.png"))
    assert (code, err) == (0, f"Wrote {tmp_path / 'out.png'}\n")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    sets = Path(market).parent
    assert run("trace", "synthesise", "-o", str(sets / "two"), "--days", "0.4", "--seed", "6")[0] == 0
    arguments[4] = str(sets)
    assert run(*arguments, str(tmp_path / "both.png"), "--quiet")[::2] == (0, "")
    assert sorted(f.name for f in tmp_path.glob("both*")) == ["both-synthetic-5.png", "both-synthetic-6.png"]


# -- what can be wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--trace", "{tmp}/nowhere"], 1, "{tmp}/nowhere: no such directory; give one that holds set.json"),
        (["--trace", "{tmp}"], 1, "{tmp}: holds no set.json, and no directory with one; make one with"),
        (
            ["--trace", "{market}", "--zones", "mars"],
            1,
            "set 'synthetic-5' has no zone like mars; it has syn-1a",
        ),
        (["--trace", "{market}", "--days", "0.01"], 1, "the first 2 h are not measured, so play more"),
        (["--policy", "best"], 2, "orchestrator: there is no policy 'best'; there are pool, 70/30, adaptive"),
        (["--plot", "{tmp}/out.gif"], 2, "end the name in .png, .svg, .pdf"),
        (["--plot", "{tmp}/no/out.png"], 2, "there is no directory {tmp}/no"),
        (["--cold-start", "180"], 2, "has no unit"),
        (["--jobs", "0"], 2, "see `orchestrator simulate --help`"),
        (["--days", "-1"], 2, "see `orchestrator simulate --help`"),
        (["extra"], 2, "see `orchestrator simulate --help`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_say_what_where_and_what_to_do(
    arguments: list[str], code: int, complaint: str, run: Run, file: str, market: str, tmp_path: Path
) -> None:
    places = {"tmp": tmp_path, "market": market}
    given = [text.format(**places) for text in arguments]
    found, out, err = run("simulate", "-c", file, *given)
    assert (found, out) == (code, "")
    assert complaint.format(**places) in err
    assert len(err.splitlines()) == 1


def test_a_damaged_set_is_named(run: Run, file: str, market: str) -> None:
    (Path(market) / "syn-1a.json").write_text('{"data": [1]}')
    code, out, err = run("simulate", "-c", file, "-t", market)
    assert (code, out) == (1, "")
    assert err == f"{market}/syn-1a.json: data: has 1 ticks, set.json says 144; make them equal\n"


def test_a_faulty_configuration_stops_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = -1\n")
    code, out, err = run("simulate", "-c", str(file))
    assert (code, out) == (1, "")
    assert err == f"{file}:2: pool.llama.replicas: -1 is too small; write at least 0\n"


def test_without_matplotlib_it_ends_before_the_runs(
    run: Run, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.pictures.find_spec", lambda name: None)
    code, out, err = run("simulate", "-c", file, "--plot", str(tmp_path / "out.png"))
    assert (code, out) == (1, "")
    assert "pip install 'spot-orchestrator[plot]'" in err


def test_without_the_solver_there_is_no_bound_and_a_note(
    run: Run, file: str, market: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.simulate._has_solver", lambda: False)
    code, out, _ = run("simulate", "-c", file, "-t", market, "-o", "json", "-j", "1")
    assert code == 0
    view = json.loads(out)
    assert "omniscient bound" not in [r["policy"] for r in view["markets"][0]["results"]]
    assert any("needs the solver of the extra" in note for note in view["notes"])


# -- trace -------------------------------------------------------------------------------------------


def test_a_set_is_shown(run: Run, market: str) -> None:
    code, out, err = run("trace", "show", market)
    assert (code, err) == (0, "")
    assert out.startswith("synthetic-5: 0.5 days in ticks of 300 s, 6 zones\nZONE    REGION  AVAILABLE")
    assert "seed: 5" in out
    code, out, _ = run("trace", "show", str(Path(market).parent), "-o", "json")
    assert code == 0
    assert [found["name"] for found in checked("trace", out)["sets"]] == ["synthetic-5"]


def test_a_set_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, out, err = run("trace", "show", str(tmp_path))
    assert (code, out) == (1, "")
    assert "holds no set.json" in err


def test_a_recording_is_converted_and_played(run: Run, file: str, tmp_path: Path) -> None:
    recorded = tmp_path / "us-west-2a_v100_1.json"
    recorded.write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": [4] * 20 + [0] * 5 + [4] * 20}))
    where = str(tmp_path / "set")
    convert = ["trace", "convert", str(recorded), "--from", "skypilot", "-o", where]
    code, out, err = run(*convert)
    assert (code, out) == (1, "")
    assert err == f"{recorded}: the recording has no on-demand price; give --on-demand-price in USD/h\n"
    code, out, err = run(*convert, "--on-demand-price", "3.06", "--nodes", "4")
    assert (code, err) == (0, "")
    assert "us-west-2a  us-west-2        89%   14.2    16" in out
    assert f"Next: orchestrator simulate --config pool.toml --trace {where}" in out
    code, _, err = run(*convert, "--on-demand-price", "3.06")
    assert (code, err) == (
        1,
        f"{where}: is there already; give another directory, or --force to replace it\n",
    )
    assert run(*convert, "--on-demand-price", "3.06", "--force")[0] == 0
    code, out, _ = run("simulate", "-c", file, "-t", where, "-j", "1", "-p", "pool", "spot e")
    assert code == 0
    assert "us-west-2a took" in out


def test_a_price_history_is_converted(run: Run, tmp_path: Path) -> None:
    rows = [("00:00", "1.0"), ("06:00", "2.0")]
    file = tmp_path / "prices.csv"
    text = "".join(f"us-east-1a,p5,Linux/UNIX,{usd},2026-11-01T{at}:00Z\n" for at, usd in rows)
    file.write_text("AvailabilityZone,InstanceType,ProductDescription,SpotPrice,Timestamp\n" + text)
    where = str(tmp_path / "set")
    code, out, err = run(
        *("trace", "convert", str(file), "--from", "aws-price-history", "-o", where),
        *("--on-demand-price", "3", "--gap", "10m", "--name", "mine", "--nodes", "8"),
    )
    assert (code, err) == (0, "")
    assert out.startswith("mine: 0.2 days in ticks of 600 s, 1 zone, from 2026-11-01T00:00:00+00:00")
    assert "the history says none: 8 nodes while the price is at most 3 USD/h" in out


def test_a_market_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    code, out, err = run("trace", "synthesise", "-o", str(tmp_path / "set"), "--days", "0")
    assert (code, out) == (2, "")
    assert "see `orchestrator trace synthesise --help`" in err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("arguments", [["trace"], ["trace", "--help"]])
def test_the_family_lists_its_commands(arguments: list[str], run: Run) -> None:
    code, out, _ = run(*arguments)
    assert code == 0
    for word in ("show", "convert", "synthesise"):
        assert f"\n  {word}: " in out


# -- processes ---------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *arguments]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_hash_seed_and_processes_change_nothing(file: str, market: str) -> None:
    said = []
    for hash_seed, jobs in (("1", "1"), ("2", "2")):
        done = subprocess.run(
            command(
                *("simulate", "-c", file, "-t", market, "-o", "json", "-j", jobs),
                *("-p", "pool", "adaptive", "SpotHedge", "omniscient"),
            ),
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        said.append(done.stdout)
    assert len(json.loads(said[0])["markets"][0]["results"]) == 5
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_it_and_everything_that_it_started(jobs: str, file: str, tmp_path: Path) -> None:
    """As a terminal does it: the signal goes to the whole process group."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = command(
        "simulate", "-c", file, "--days", "300", "--jobs", jobs, "-p", "pool", "--whole-daemon"
    )
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=writer,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "TMPDIR": str(scratch)},
    )
    os.close(writer)
    try:
        seen = b""
        while b"0 of 2 runs" not in seen:
            seen += os.read(reader, 4096)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        out = process.stdout.read()  # ends when no process holds it any more
        # a shell says 130 of both: Python ends by the signal where it was caught while a class was made
        assert process.wait(timeout=60) in (130, -signal.SIGINT)
        assert out == b""
        deadline = time.monotonic() + 60
        while _alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(process.pid)
        assert list(scratch.iterdir()) == []
    finally:
        os.close(reader)
        if _alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.long
def test_a_reader_that_has_seen_enough_is_no_error(file: str, market: str) -> None:
    line = f"'{sys.executable}' -m orchestrator simulate -c {file} -t {market} -j 1 | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.stdout.startswith("llama on synthetic-5")
    assert done.stderr == ""


@pytest.mark.slow
def test_the_commands_start_without_the_simulator() -> None:
    code = "import sys; from orchestrator.__main__ import main; main(['simulate', '--help']); "
    code += (
        "print(sorted(m for m in sys.modules if 'matplotlib' in m or 'simulator' in m or m == 'pydantic'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.long
def test_on_recorded_markets(file: str, run: Run) -> None:
    if not (TRACES / "v100-aws-2023-08-4n" / "set.json").is_file():
        pytest.skip("the recorded sets are not here")
    code, out, _ = run(
        *("simulate", "-c", file, "-t", str(TRACES / "v100-aws-2023-08-4n"), "--days", "2", "-o", "json"),
        *("-p", "pool", "all", "static 70/30"),
    )
    assert code == 0
    results = {r["policy"]: r for r in checked("simulate", out)["markets"][0]["results"]}
    assert results["all on-demand"]["cost_ratio"] == pytest.approx(1.0)
    assert results["pool"]["capacity_availability"] > results["static 70/30"]["capacity_availability"]
    assert results["pool"]["preemptions"] > 0
