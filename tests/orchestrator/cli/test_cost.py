"""`orchestrator cost`: with a daemon, from its files, and before anything runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cost_books import books
from cost_state import state
from pydantic import TypeAdapter

from orchestrator.costs.view import view_of
from orchestrator.schemas import generate

Run = Callable[..., tuple[int, str, str]]

__all__ = ["state"]
SAMPLES = Path(__file__).parents[3] / "examples" / "usage"
PERIOD = ("--since", "2026-09-24", "--until", "2026-09-25")
FILE = """
[daemon]
state_dir = "."
[pool.chat]
replicas = 2
engine = { served_name = "llama" }
[pool.chat.cost]
tokens_per_second = 1000
[pool.embed]
replicas = 2
[provider.claude]
kind = "anthropic"
usd_per_day = "5"
api_key_file = "{credentials}/key"
price.m = { input = "3", output = "15" }
[[route]]
models = ["a"]
to = [{ pool = "chat" }, { provider = "claude", model = "m" }]
"""


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCHESTRATOR_SOCKET", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def file(state: Path) -> str:
    """A configuration beside its state, and no daemon."""
    file = state / "pool.toml"
    file.write_text(FILE)
    return str(file)


def follows(name: str, text: str) -> Any:
    value = json.loads(text)
    TypeAdapter(generate._described(generate.VIEWS[name], {})).validate_python(value, strict=True)
    return value


# -- from a daemon -----------------------------------------------------------------------------------


def test_the_daemon_is_asked_for_whole_hours_and_the_grouping(run: Run, api: Any) -> None:
    api.cost = view_of(books(), ("key", "model"))
    code, out, err = run(
        "cost", "--socket", str(api.socket), "--since", "2026-09-24T08:20", "--until", "2026-09-25T00:01Z",
        "--by", "key,model", "--pool", "chat", "-o", "json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert follows("cost", out) == api.cost
    hour = 497_288
    assert api.gets == [
        f"/v1/cost?since={hour * 3600.0}&until={(hour + 17) * 3600.0}&by=key%2Cmodel&pool=chat"
    ]


def test_the_picture_asks_for_days(run: Run, api: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    api.cost = view_of(books(), ("day", "pool"))
    code, out, err = run("cost", "--socket", str(api.socket), "--picture", str(tmp_path / "a.png"))
    assert (code, err) == (0, f"Wrote {tmp_path / 'a.png'}\n")
    assert "Costs from 2024-10-04" in out
    assert ["by=pool" in get for get in api.gets] == [True, False]
    assert "by=day%2Cpool" in api.gets[1]


def test_a_grouping_that_is_none_is_wrong_usage_before_anybody_is_asked(run: Run, api: Any) -> None:
    code, out, err = run("cost", "--socket", str(api.socket), "--by", "colour")
    assert (code, out, api.gets) == (2, "", [])
    assert "--by colour: any of pool, day" in err


def test_a_pool_that_the_daemon_does_not_know_is_wrong_usage_as_without_one(run: Run, api: Any) -> None:
    code, out, err = run("cost", "--socket", str(api.socket), "--pool", "nosuch")
    assert (code, out, err) == (2, "", "orchestrator: no such pool is known\n")


def test_nobody_answers_and_no_file_is_named(run: Run, short_dir: Path) -> None:
    code, out, err = run("cost", "--socket", str(short_dir / "none.sock"))
    assert (code, out) == (3, "")
    assert "there is no such socket" in err


# -- from the files ----------------------------------------------------------------------------------


def test_without_a_daemon_the_files_are_read(run: Run, file: str) -> None:
    code, out, err = run("cost", "--config", file, *PERIOD)
    assert (code, err) == (0, "the daemon does not answer: read from its files\n")
    lines = [line.split() for line in out.splitlines()]
    assert lines[3][:6] == ["chat", "$1.50", "25%", "1k", "100", "0%"]
    assert lines[4][:4] == ["embed", "$0.50", "75%", "1k"]
    assert lines[5][:6] == ["provider/claude", "$0.25", "-", "10", "5", "-"]
    assert lines[6][:5] == ["total", "$2.25", "50%", "2.01k", "205"]
    assert "chat: The API (claude/m) would be cheaper" in out


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (["key"], [[""], ["team-a"]]),
        (["market", "zone"], [["api", None], ["spot", "a"]]),
        (["pool,model", "day"], [
            ["chat", "llama", "2026-09-24"], ["embed", "simulated", "2026-09-24"],
            ["provider/claude", "m", "2026-09-24"],
        ]),
        ([], [[]]),
    ],
)  # fmt: skip
def test_any_grouping_adds_up(run: Run, file: str, by: list[str], groups: list[list[str | None]]) -> None:
    _, out, _ = run("cost", "-c", file, *PERIOD, "-o", "json", *(["--by", *by] if by else ["--by", ""]))
    view = follows("cost", out)
    assert [list(row["group"].values()) for row in view["rows"]] == groups
    assert sum(row["spent_usd"] for row in view["rows"]) == view["total"]["spent_usd"] == 2.25


def test_csv_of_one_pool(run: Run, file: str) -> None:
    code, out, _ = run("cost", "-c", file, *PERIOD, "-o", "csv", "--pool", "chat", "--by", "key")
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["key"], row["spent_usd"], row["tokens_in"]) == ("team-a", "1.5", "1000")


def test_a_picture_from_the_files(run: Run, file: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    for ending in (".png", ".svg"):
        picture = tmp_path / f"a{ending}"
        assert run("cost", "-c", file, *PERIOD, "--picture", str(picture))[0] == 0
        assert picture.stat().st_size > 5000


def test_nothing_counted_yet_is_no_error(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(FILE)
    code, out, _ = run("cost", "-c", str(file))
    out = " ".join(out.split())  # where lines break goes by the length of the path
    assert code == 0
    assert "there is no journal yet" in out
    assert (
        "* nothing was counted yet: machines are, while the daemon runs; tokens, while requests come" in out
    )


def test_a_journal_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(FILE)
    (tmp_path / "journal.db").write_bytes(b"rubbish" * 300)
    code, out, err = run("cost", "-c", str(tmp_path / "pool.toml"))
    assert (code, out) == (1, "")
    assert "journal.db" in err


def test_a_pool_that_is_in_the_file_no_more_is_reported_for_what_it_cost(run: Run, file: str) -> None:
    written = Path(file).read_text()
    assert "[pool.embed]" in written
    Path(file).write_text(
        written.replace("pool.embed", "pool.other").replace('pool = "embed"', 'pool = "other"')
    )
    code, out, _ = run("cost", "-c", file, *PERIOD, "--pool", "embed", "-o", "csv")
    assert code == 0
    assert out.splitlines()[1].startswith("embed,0.5,")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--since", "yesterday"), 2, "--since yesterday: write how long ago, such as"),
        (("--since", "2026-09-24", "--until", "2026-09-24"), 2, "there is no time between it and --until"),
        (("--since", "1d", "--until", "2d"), 2, "there is no time between it and --until"),
        (("--by", "colour"), 2, "colour: any of pool, day, zone"),
        (("--pool", "caht"), 2, "there is no pool 'caht' (did you mean 'chat'?)"),
        (("--picture", "a.gif"), 2, "--picture a.gif: end the name in .png"),
        (("--picture", "none/a.png"), 2, "there is no directory"),
        (("-o", "yaml"), 2, "yaml"),
    ],
)
def test_what_is_wrong_is_said(run: Run, file: str, arguments: tuple[str, ...], code: int, said: str) -> None:
    if "--picture" in arguments:
        pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    found, out, err = run("cost", "-c", file, *arguments)
    assert (found, out) == (code, "")
    assert said in " ".join(err.split())


def test_without_matplotlib_it_is_said_before_anything_is_asked(
    run: Run, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.pictures.find_spec", lambda name: None)
    code, out, err = run("cost", "-c", file, "--picture", "a.png")
    assert (code, out) == (1, "")
    assert "pip install 'spot-orchestrator[plot]'" in err


# -- before anything runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai.csv", "openai.json", "anthropic.csv", "anthropic.json"])
def test_every_sample_is_weighed(run: Run, name: str) -> None:
    pytest.importorskip("genai_prices", reason="needs the extra `providers`")
    code, out, err = run("cost", "--usage", str(SAMPLES / name), "--machine", "h100=3.00/500", "-o", "json")
    assert (code, err) == (0, "")
    view = follows("cost-estimate", out)
    assert view["apis"][0]["api"] == "as it was used"
    assert view["apis"][0]["usd_per_month"] > 0
    assert view["machines"][0]["people"] == 0.4


def test_the_configuration_gives_apis_pools_and_people(run: Run, file: str) -> None:
    text = FILE + '[cost]\npeople = "10%"\n'
    Path(file).write_text(text)
    code, out, err = run(
        "cost", "--usage", "50M/day", "--ratio", "1:1", "--cached", "50%", "--peak", "2", "-c", file,
        "--machine", "a b = $2 / 800", "c=1.5", "-o", "json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    view = follows("cost-estimate", out)
    assert [api["api"] for api in view["apis"]] == ["claude/m"]
    assert view["apis"][0]["usd_per_mtok"] == pytest.approx(9.0)
    assert (view["cached_share"], view["peak"]) == (0.5, 2.0)
    machines = view["machines"]
    assert [(m["machine"], m["usd_per_hour"], m["tokens_per_second"]) for m in machines] == [
        ("a b", 2.0, 800.0), ("c", 1.5, None), ("pool chat", None, 1000.0), ("pool embed", None, None),
    ]  # fmt: skip
    assert {m["people"] for m in machines} == {0.1}
    assert any("give another as --machine NAME=USD/TOKENS_PER_SECOND" in note for note in view["notes"])


@pytest.mark.parametrize(
    ("ratio", "apis", "pools"),
    [("3:1", ["claude/m"], ["pool chat"]), ("1:0", ["openai/text-embedding-3-small"], ["pool embed"])],
)
def test_a_traffic_is_held_against_what_does_the_same(
    run: Run, file: str, ratio: str, apis: list[str], pools: list[str]
) -> None:
    compare = '[pool.embed.cost]\ncompare = "openai/text-embedding-3-small"\n'
    embeds = 'engine = { task = "embed", served_name = "e" }\n'
    written = FILE.replace("[pool.embed]\n", f"[pool.embed]\n{embeds}")
    Path(file).write_text(written + compare)
    code, out, _ = run("cost", "--usage", "50M/day", "--ratio", ratio, "-c", file, "-o", "json")
    assert code == 0
    view = follows("cost-estimate", out)
    assert [api["api"] for api in view["apis"]] == apis
    assert [machine["machine"] for machine in view["machines"]] == pools


def test_people_can_be_given(run: Run) -> None:
    _, out, _ = run("cost", "--usage", "1M/day", "--people", "0", "--machine", "a=1/1", "-o", "json")
    assert json.loads(out)["machines"][0]["people"] == 0.0


def test_embeddings_have_no_answers(run: Run) -> None:
    _, out, _ = run("cost", "--usage", "1M/day", "--ratio", "1:0", "-o", "json")
    assert json.loads(out)["tokens_out_per_month"] == 0.0


def test_a_sample_as_people_see_it(run: Run) -> None:
    pytest.importorskip("genai_prices", reason="needs the extra `providers`")
    code, out, _ = run("cost", "--usage", str(SAMPLES / "openai.csv"), "--machine", "h100=3.00/2500")
    assert code == 0
    assert out.startswith("1.41G tokens a month, at the pace of 7 days (")
    assert "h100 would pay from " in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nothing.csv",), 2, "'nothing.csv' is no file, and no pace"),
        (("1M/day", "--ratio", "0:1"), 2, "--ratio 0:1: write prompts:answers"),
        (("1M/day", "--ratio", "x"), 2, "--ratio x: write prompts:answers"),
        (("1M/day", "--cached", "120%"), 2, "--cached: 120% is no share between 0% and 100%"),
        (("1M/day", "--peak", "0.5"), 2, "peak"),
        (("1M/day", "--machine", "h100"), 2, "--machine h100: write NAME=USD_PER_HOUR/TOKENS_PER_SECOND"),
        (("1M/day", "--machine", "h100=0/5"), 2, "--machine h100=0/5: write NAME="),
        (("1M/day", "--machine", "h100=1/nan"), 2, "--machine h100=1/nan: write NAME="),
        (("1M/day", "--people", "many"), 2, "--people: \"many\" is not a share"),
        (("1M/day", "-o", "csv"), 2, "-o csv: a traffic is shown as a table or as json"),
    ],
)  # fmt: skip
def test_a_traffic_that_is_none(run: Run, arguments: tuple[str, ...], code: int, said: str) -> None:
    found, out, err = run("cost", "--usage", *arguments)
    assert (found, out) == (code, "")
    assert said in " ".join(err.split())


def test_a_file_that_is_no_export_is_named(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b\n1,2\n")
    code, out, err = run("cost", "--usage", str(file))
    assert (code, out) == (1, "")
    assert err.startswith(f"{file}: no usage export of OpenAI or Anthropic: its first line is no header")
    file.write_bytes(b"\xff\xfe\x00")
    code, _, err = run("cost", "--usage", str(file))
    assert (code, err) == (1, f"{file}: it is no text in UTF-8; save it as such\n")
    with file.open("wb") as sparse:
        sparse.truncate(2**30)
    code, _, err = run("cost", "--usage", str(file))
    assert (code, err.partition("Anthropic: ")[2]) == (
        1, "it is larger than 64 MiB; export fewer days, or by the day\n"
    )  # fmt: skip


def test_without_the_price_list_it_is_said_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.traffic._has_list", lambda: False)
    code, out, err = run("cost", "--usage", "1M/day", "--api", "nobody/knows")
    assert code == 0
    assert "pip install 'spot-orchestrator[providers]'" in err
    assert "* what nobody/knows asks is not known" in out
