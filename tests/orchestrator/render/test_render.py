"""What people see, at fixed widths. `UPDATE_SNAPSHOTS=1 pytest` writes the expected texts anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.render import render
from orchestrator.render.parts import Look, pack
from orchestrator.words import age, clean, countdown, money, percent, plural, short_time

SNAPSHOTS = Path(__file__).parent / "snapshots"


def check(name: str, text: str) -> None:
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("sample", ["calm", "small", "swapping", "large", "paused"])
def test_status(sample: str, width: int, request: pytest.FixtureRequest) -> None:
    view = request.getfixturevalue(sample)
    text = render.status(view, Look(width=width))
    assert max(len(line) for line in text.splitlines()) <= width
    check(f"status-{sample}-{width}", text)


def test_status_wide(swapping: dict[str, Any]) -> None:
    check("status-swapping-wide", render.status(swapping, Look(width=200, wide=True)))


def test_wide_status_lists_every_node_of_a_large_pool(large: dict[str, Any]) -> None:
    text = render.status(large, Look(width=200, wide=True))
    assert all(node["id"] in text for node in large["pools"][0]["nodes"])


def test_narrow_status_of_a_large_pool_names_every_node_that_needs_a_look(large: dict[str, Any]) -> None:
    text = render.status(large, Look(width=80))
    assert len(text.splitlines()) < 30
    assert all(name in text for name in ("i-0011", "i-0028", "i-0029", "i-002a"))
    counted = [int(line.split()[0]) for line in text.splitlines() if " nodes " in line]
    assert sum(counted) == 196


@pytest.mark.parametrize("width", [80, 120])
def test_nodes(width: int, swapping: dict[str, Any]) -> None:
    view = {"schema": "nodes/1", "at": swapping["at"], "nodes": swapping["pools"][0]["nodes"]}
    check(f"nodes-{width}", render.nodes(view, Look(width=width)))


def test_nodes_of_several_clouds_say_whose_they_are(swapping: dict[str, Any]) -> None:
    nodes = [dict(node) for node in swapping["pools"][0]["nodes"]]
    view = {"schema": "nodes/1", "at": swapping["at"], "nodes": nodes}
    assert "CLOUD" not in render.nodes(view, Look(width=120))
    nodes[0]["provider"] = "azure"
    [row] = [line for line in render.nodes(view, Look(width=80)).splitlines() if nodes[0]["id"] in line]
    assert " azure " in row
    del nodes[0]["provider"]  # a daemon of an older version does not say
    assert "CLOUD" in render.nodes(view, Look(width=120))


@pytest.mark.parametrize(
    ("said", "cell", "words"),
    [
        ({"way": "derender", "why": ""}, "derender", "what it began, another node finishes\n"),
        ({"way": "clean", "why": "403"}, "clean", "plain text that it began, another node finishes: 403"),
        ({"way": "none", "why": "no ids"}, "none", "ends with an error when it is lost: no ids"),
        ({"way": "later", "why": ""}, "later", "later"),
        (None, "-", "not known yet"),
        ("left out", "-", "not known yet"),
    ],
    ids=str,
)
def test_a_node_says_who_finishes_what_it_began(said: Any, cell: str, words: str, story: Any) -> None:
    """A daemon of an older version leaves it out."""
    node = story["node"] | {"id": "i-1", "why": "w"}
    node["continuation"] = said
    if said == "left out":
        del node["continuation"]
    view: Any = {"schema": "nodes/1", "at": 0.0, "nodes": [node]}
    head, row = render.nodes(view, Look(width=250, wide=True)).splitlines()
    assert row[head.index("CONTINUES") :].split()[0] == cell
    assert words in render.story(story | {"node": node}, Look(width=250))


@pytest.mark.parametrize("width", [80, 120])
def test_story(width: int, story: dict[str, Any]) -> None:
    check(f"story-{width}", render.story(story, Look(width=width)))


FAILED_BOOT = {
    "node": "i-1",
    "at": 0.0,
    "placement": "spot g6.xlarge in us-east-1a",
    "why": "Client.InternalError: Client error on launch",
    "console": ["loading", "out of memory"],
    "remedy": "grant the key",
    "commands": ["aws kms create-grant --region us-east-1 " + "--operations Decrypt " * 9],
}


@pytest.mark.parametrize("known", [True, False])
def test_the_story_of_a_failed_boot_shows_why_and_what_to_do(known: bool, story: dict[str, Any]) -> None:
    """Also once the node is gone; a command stays on one line, to be copied."""
    text = render.story(
        story | {"node": story["node"] if known else None, "agent": None, "failed_boot": FAILED_BOOT},
        Look(width=80),
    )
    assert "spot g6.xlarge in us-east-1a: Client.InternalError" in " ".join(text.split())
    assert "grant the key" in text
    assert f"    {FAILED_BOOT['commands'][0]}".rstrip() in text.splitlines()
    assert "  | loading\n  | out of memory\n" in text


def test_what_a_machine_wrote_moves_no_cursor_and_is_no_markup(story: dict[str, Any]) -> None:
    ill = ["\x1b[2J\x1b]0;owned\x07", "[bold red]x[/]", "{{ $value }}", "\x9b31m\u202eabc\r\n"]
    text = render.story(
        story | {"failed_boot": FAILED_BOOT | {"console": ill, "why": ill[0]}}, Look(width=80)
    )
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    assert "[bold red]x[/]" in text


def test_a_console_that_shows_nothing_says_so(story: dict[str, Any]) -> None:
    bare = FAILED_BOOT | {"console": [], "remedy": None, "commands": []}
    text = render.story(story | {"failed_boot": bare}, Look(width=80))
    assert "empty, or it could not be read" in text
    assert "to do" not in text


def test_the_story_shows_how_far_a_node_came_and_which_checks_failed(story: dict[str, Any]) -> None:
    checks = [
        {"name": "driver", "ok": True, "text": "fine"},
        {"name": "ninja", "ok": False, "text": "not found \x1b[31m: add it to the image"},
    ]
    boot = {"stage": "checks", "ok": False, "detail": "1 of 2 failed", "checks": checks, "restarts": 3}
    agent = {"heard_s": 1.0, "life_cycle": "spot", "gpus": [], "xids": [], "errors": [], "boot": boot}
    text = render.story(story | {"agent": agent}, Look(width=120))
    assert "checks, not well, 3 restarts: 1 of 2 failed" in text
    assert "ninja: not found" in text
    assert "driver" not in text
    assert "\x1b" not in text
    del agent["boot"]  # a daemon of an older version
    assert "restarts" not in render.story(story | {"agent": agent}, Look(width=120))


def test_story_of_a_forgotten_node() -> None:
    story: Any = {"schema": "node/1", "node": None, "agent": None, "events": [], "sentences": []}
    assert render.story(story, Look(width=80)) == "Nothing is known of this node.\n"


@pytest.mark.parametrize("width", [80, 120])
def test_plan(width: int, plan: dict[str, Any]) -> None:
    check(f"plan-{width}", render.plan(plan, Look(width=width)))


def test_plan_wide_shows_the_target_set(plan: dict[str, Any]) -> None:
    text = render.plan(plan, Look(width=200, wide=True))
    assert "10.0.0.1:8000" in text


def test_empty_plan_says_so(plan: dict[str, Any]) -> None:
    plan["pools"][0] |= {"actions": [], "deferred": []}
    assert render.plan(plan, Look(width=80)).startswith("llama  nothing to do")


@pytest.mark.parametrize("width", [80, 120])
def test_events(width: int, story: dict[str, Any]) -> None:
    check(f"events-{width}", render.events(story["events"], Look(width=width)))


def test_followed_event_is_one_line_however_long(story: dict[str, Any]) -> None:
    event = story["events"][0] | {"text": "long " * 100}
    assert render.event_line(event, Look(width=80)).count("\n") == 1


def test_an_event_does_not_repeat_its_kind(story: dict[str, Any]) -> None:
    event = story["events"][0]
    items = [
        event | {"kind": "NodeSeen", "text": "NodeSeen"},
        event | {"kind": "Paused", "text": "Paused: x"},
    ]
    lines = render.events(items, Look(width=100)).splitlines()
    assert lines[1].split()[1:] == ["NodeSeen", "i-0c41"]
    assert lines[2].split()[1:] == ["Paused", "i-0c41", "x"]
    assert render.event_line(items[1], Look(width=100)).count("Paused") == 1


@pytest.mark.parametrize(
    ("spot", "on_demand", "hot", "words"),
    [
        (7, 3, 0, "  70/30  "),
        (7, 4, 1, "  70/30  "),
        (5, 5, 0, "  50/50 (aim 70/30)  "),
        (0, 0, 0, "  aim 70/30  "),
        (0, 1, 1, "  aim 70/30  "),
        (8, 1, 1, "  100/0 (aim 70/30)  "),
    ],
)
def test_mix_counts_what_is_not_standby(
    spot: int, on_demand: int, hot: int, words: str, calm: dict[str, Any]
) -> None:
    calm["pools"][0].update(
        spot_ready=spot, on_demand_ready=on_demand, ready=spot + on_demand, standby_hot=hot
    )
    assert words in render.status(calm, Look(width=400))


def test_no_events() -> None:
    assert render.events([], Look(width=80)) == "No events.\n"


def test_explain() -> None:
    view: Any = {"schema": "explain/1", "subject": "capacity", "sentences": ["One.", "Two."]}
    assert render.explain(view, Look(width=80)) == "capacity\nOne.\nTwo.\n"


def test_colour_only_repeats_the_words(swapping: dict[str, Any]) -> None:
    import re

    plain = render.status(swapping, Look(width=120))
    coloured = render.status(swapping, Look(width=120, colour=True))
    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_suggested_commands_reach_the_same_daemon(calm: dict[str, Any]) -> None:
    text = render.status(calm, Look(width=200, flags="--socket /run/o.sock"))
    assert "orchestrator nodes -o wide --socket /run/o.sock" in text


def test_a_pair_without_its_database_says_so_once(calm: dict[str, Any]) -> None:
    """The pool's own problem says it; that there is no lease and no journal is the same trouble."""
    said = "the database has not answered for 40 s: noticed nodes are still taken out of the balancers"
    calm["daemon"].update(leading=False, journal_ok=False, database_silent_s=40.0)
    calm["pools"][0].update(problems=[said], state="degraded")
    text = render.status(calm, Look(width=200))
    assert f"! {said}" in text
    assert "failsafe, last turn" in text
    assert "lease" not in text
    assert "journal" not in text


Change = Callable[[dict[str, Any]], None]

FACTS: list[tuple[str, Change, str]] = [
    ("no lease", lambda view: view["daemon"].update(leading=False), "does not hold the lease"),
    ("no journal", lambda view: view["daemon"].update(journal_ok=False), "journal takes no writes"),
    ("rejected configuration",
     lambda view: view["daemon"]["config"].update(rejected={"at": 0.0, "problems": ["pool.toml:3: no", "y"],
                                                "in_force": "the one before is in force"}),
     "rejected, the one before is in force: pool.toml:3: no (and 1 more fault)"),
    ("stuck loop", lambda view: view["daemon"].update(last_turn_s=75.0), "no turn for 1m15s"),
    ("endless pause", lambda view: view["daemon"].update(paused={"by": "eve", "reason": "", "until": None}),
     "paused by eve: no reason given; until someone resumes"),
    ("cover", lambda view: view["pools"][0].update(temporary_on_demand=2), "(2 temporary)"),
    ("not serving", lambda view: view["pools"][0].update(serving=8), "8/10 serving  10 ready"),
    ("dearer", lambda view: view["pools"][0].update(saved_share=-0.17, saved_usd=-2.5),
     "$31.40/h, 17% above on-demand  on-demand would cost $98.20/h  cap $120.00/h"),
    ("no cap", lambda view: view["pools"][0].update(spend_cap_per_hour=None), "cap unlimited"),
    ("spent more", lambda view: view["pools"][0].update(saved_usd=-2.5),
     "spent $1,204.50, $2.50 more than on"),
    ("as dear", lambda view: view["pools"][0].update(saved_share=-0.004), "$31.40/h, as much as on-demand"),
    ("standby", lambda view: view["pools"][0].update(standby_hot=1, standby_stopped=2),
     "standby 1 hot, 2 stopped"),
    ("problem", lambda view: view["pools"][0].update(problems=["no spot anywhere"]), "! no spot anywhere"),
    ("note", lambda view: view["pools"][0].update(notes=["as wanted"]), "- as wanted"),
    ("no nodes", lambda view: view["pools"][0].update(nodes=[]), "No nodes yet."),
    ("no pools", lambda view: view.update(pools=[]), "The daemon runs no pool."),
    (
        "a standby",
        lambda view: (
            view.update(pools=[]),
            view["daemon"].update(leading=False, leader="pid 7 on host-a (epoch 5)"),
        ),
        "Standby: pid 7 on host-a (epoch 5) leads. It knows the pool; this daemon takes over when",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [fact[1:] for fact in FACTS], ids=[fact[0] for fact in FACTS])
def test_status_says(change: Change, words: str, calm: dict[str, Any]) -> None:
    change(calm)
    assert words in render.status(calm, Look(width=200))


@pytest.mark.parametrize(
    ("remaining", "words"), [(106.9, "1:46 left"), (-5.0, "deadline passed 5s ago"), (None, "no deadline")]
)
def test_notice_counts_down(remaining: float | None, words: str, swapping: dict[str, Any]) -> None:
    swapping["pools"][0]["notices"][0]["remaining_s"] = remaining
    assert words in render.status(swapping, Look(width=120))


def test_status_names_the_commands_of_its_problems_next_and_resume_last(calm: dict[str, Any]) -> None:
    pool = calm["pools"][0]
    pool["problems"] = [
        "spot in r is paused. Correct that, then run `orchestrator resume`; a launch tries now and then",
        "3 boots failed, the last one: not ready; see `orchestrator node i-0c41`",
        "nothing more is launched until `orchestrator resume`",
    ]
    *_, last = render.status(calm, Look(width=200)).splitlines()
    assert last.split("   ")[1:3] == ["orchestrator node i-0c41", "orchestrator resume"]
    assert last.count("orchestrator resume") == 1


def test_many_notices_and_swaps_are_counted_soonest_deadline_first(swapping: dict[str, Any]) -> None:
    pool = swapping["pools"][0]
    notice, swap = pool["notices"][0], pool["swaps"][0]
    pool["notices"] = [
        notice | {"node": f"i-{n:04x}", "deadline": 2000.0 - n, "remaining_s": 200.0 - n} for n in range(60)
    ]
    pool["swaps"] = [swap | {"outgoing": f"i-{n:04x}"} for n in range(60)]
    lines = render.status(swapping, Look(width=200)).splitlines()
    assert next(line for line in lines if "interruption" in line).startswith("! i-003b")
    assert "! and 50 more notices: -o wide shows all" in lines
    assert "~ and 50 more swaps: -o wide shows all" in lines
    wide = render.status(swapping, Look(width=200, wide=True))
    assert wide.count("interruption notice  ") == 60


def test_text_from_elsewhere_cannot_move_the_cursor(calm: dict[str, Any]) -> None:
    node = calm["pools"][0]["nodes"][0]
    node["why"] = "evil \x1b[2J text\nwith a second line"
    calm["pools"][0]["problems"] = ["\x1b]0;title\x07"]
    text = render.status(calm, Look(width=200))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "evil  [2J text with a second line" in text


def test_markup_in_a_reason_is_only_text(calm: dict[str, Any]) -> None:
    calm["pools"][0]["nodes"][0]["why"] = "[red]not a colour[/red] :smile:"
    assert "[red]not a colour[/red] :smile:" in render.status(calm, Look(width=200))


def test_pack_indents_what_does_not_fit() -> None:
    from rich.text import Text

    assert pack([Text("aaaa"), Text("bbbb"), Text("cccc")], 10).plain == "aaaa  bbbb\n  cccc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (59.4, "59s"), (60, "1m"), (200, "3m20s"), (10_920, "3h2m"), (363_600, "4d5h")],
)
def test_age(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (short_time(0.0), "0ms"),
        (short_time(0.08), "80ms"),
        (short_time(3.21), "3.2s"),
        (short_time(65.0), "1m5s"),
        (countdown(106.9), "1:46"),
        (countdown(-3), "0:00"),
        (countdown(7390), "2:03:10"),
        (money(1204.5), "$1,204.50"),
        (money(-3), "-$3.00"),
        (money(-0.001), "$0.00"),
        (percent(0.684), "68%"),
        (plural(1, "request"), "1 request"),
        (plural(12_345, "request"), "12,345 requests"),
        (plural(0, "request"), "0 requests"),
        (clean("a\tb"), "a b"),
    ],
)
def test_words(value: str, text: str) -> None:
    assert value == text
