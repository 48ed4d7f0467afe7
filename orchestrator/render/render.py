"""What the command line shows: the answers of the control API as text for a terminal.

`status` is the face of the product: one line of truth for each pool, what is wrong, who is on the way out
with how much time left, every node with the reason for its state, and what to type next. Everything here
turns a view into a string for a given width. Colour repeats what the words say: nothing is lost without it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.render import routes
from orchestrator.render.parts import (
    Look,
    agent_card,
    event_table,
    event_text,
    failed_boot_card,
    gpus_card,
    node_card,
    node_table,
    pack,
    pool_nodes,
    pool_plan,
    table_of,
    text_of,
    urgency,
)
from orchestrator.render.starts import start_line, summary
from orchestrator.words import (
    age,
    clean,
    clock_time,
    countdown,
    instant,
    money,
    plural,
    rejection,
    short_time,
    small_money,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.views.api import (
        DaemonView,
        EventView,
        ExplainView,
        HistoryView,
        NodeStory,
        NodesView,
        NoticeView,
        PlanView,
        PoolView,
        StatusView,
        SwapView,
    )

_MANY_LINES: Final = 10  # notices and swaps shown one by one
_COMMAND: Final = re.compile(r"`(orchestrator (?:resume|node [\w-]+))`")
_ONE_LINE: Final = 10_000  # columns no single event fills
_LATE_TURN: Final = 30.0  # s without a completed turn that are worth a line
_HURRY: Final = 30.0  # s before a deadline that are shown in red

_STATE_STYLE: Final = {
    "ok": "bold green",
    "degraded": "bold yellow",
    "below-floor": "bold red",
    "paused": "bold magenta",
    "starting": "bold cyan",
    "down": "bold white on red",
    "all-on-demand": "bold yellow",
    "empty": "bold green",
}


def status(view: StatusView, look: Look) -> str:
    """The whole picture: daemon, pools, notices, swaps, nodes, next commands."""
    parts: list[RenderableType] = []
    for pool in view["pools"]:
        parts += _pool(pool, view, look)
    if not view["pools"]:
        parts.append(Text(_no_pool(view["daemon"])))
    parts += routes.of_status(view, look)
    parts.append(_next(_suggestions(view), look))
    return text_of(Group(*parts), look)


def nodes(view: NodesView, look: Look) -> str:
    """Every node, one line each."""
    if not view["nodes"]:
        return "No nodes.\n"
    return text_of(node_table(sorted(view["nodes"], key=urgency), look), look)


def story(view: NodeStory, look: Look) -> str:
    """One node: what it is, why, and everything that happened to it with the time of each step."""
    parts: list[RenderableType] = []
    node = view["node"]
    if node is not None:
        parts += node_card(node)
    if view["agent"] is not None:
        parts += agent_card(view["agent"])
    gpus = view.get("gpus")  # a daemon of an older version does not say
    if gpus is not None:
        parts += gpus_card(gpus)
    parts += [Text(clean(sentence)) for sentence in view["sentences"]]
    start = view.get("start")  # a daemon of an older version does not say
    parts += [Text(start_line(start))] if start is not None else []
    failed = view.get("failed_boot")  # a daemon of an older version does not say
    if failed is not None:
        parts += failed_boot_card(failed)
    if view["events"]:
        parts += [Text(), event_table(view["events"], look, of_one_node=True)]
    if not parts:
        parts.append(Text("Nothing is known of this node."))
    return text_of(Group(*parts), look)


def events(items: Sequence[EventView], look: Look) -> str:
    """Entries of the journal, oldest first."""
    return text_of(event_table(items, look), look) if items else "No events.\n"


def event_line(item: EventView, look: Look) -> str:
    """One entry as one line, however long, for following."""
    line = Text.assemble(
        (instant(item["at"]) if look.wide else clock_time(item["at"]), "dim"),
        f"  {clean(item['pool']):<10}" if "pool" in item else "",
        f"  {item['kind']:<18}",
        f"  {clean(item['node'] or '-'):<16}  ",
        event_text(item),
    )
    return text_of(line, replace(look, width=_ONE_LINE))


def history(view: HistoryView, look: Look) -> str:
    """Swaps with the time of each stage since their beginning, then each stage and starts summed up."""
    begun = [Text(summary(kind)) for kind in view.get("start_kinds", [])]
    if not view["swaps"]:
        return text_of(Group(Text("No swaps yet."), *begun), look)
    stages = [stage["stage"].upper() for stage in view["stages"]]
    pools = ["POOL"] if any("pool" in swap for swap in view["swaps"]) else []
    table = table_of("BEGAN", *pools, "NODE", "CAUSE", "REPLACED BY", *stages, right=stages)
    for swap in view["swaps"]:
        table.add_row(
            instant(swap["began_at"]) if look.wide else clock_time(swap["began_at"]),
            *(clean(swap.get("pool", "-")) for _ in pools),
            clean(swap["outgoing"]),
            clean(swap["cause"]),
            clean(swap["incoming"] or "-"),
            *(_stage_time(swap["seconds"], stage["stage"]) for stage in view["stages"]),
        )
    lines = [
        Text(
            f"{stage['stage']}: {plural(stage['swaps'], 'swap')}, median {short_time(stage['median_s'])}, "
            f"p95 {short_time(stage['p95_s'])}, longest {short_time(stage['longest_s'])}"
        )
        for stage in view["stages"]
    ]
    return text_of(Group(table, Text(), *lines, *begun), look)


def _stage_time(seconds: Mapping[str, object], stage: str) -> str:
    value = seconds.get(stage)
    return short_time(value) if isinstance(value, float | int) else "-"


def plan(view: PlanView, look: Look) -> str:
    """What the daemon would do now, what it holds back, and why."""
    parts: list[RenderableType] = []
    for pool in view["pools"]:
        parts += pool_plan(pool, look)
    return text_of(Group(*(parts or [Text("The daemon runs no pool that has decided anything yet.")])), look)


def explain(view: ExplainView, look: Look) -> str:
    """Sentences about one subject."""
    lines = [Text(clean(sentence)) for sentence in view["sentences"]]
    return text_of(Group(Text(clean(view["subject"]), style="bold"), *lines), look)


# Pools


def _pool(pool: PoolView, view: StatusView, look: Look) -> list[RenderableType]:
    daemon, at = view["daemon"], view["at"]
    parts: list[RenderableType] = [pack(_pool_segments(pool, daemon), look.width)]
    answered = [Text(f"! {clean(text)}", style="yellow") for text in routes.for_pool(pool["name"], view)]
    parts += [pack([line], look.width) for line in answered]
    parts += _problems(pool, daemon, at, look.width)
    parts += _pool_notices(pool["notices"], look)
    parts += _pool_swaps(pool["swaps"], at, look)
    parts += [pack([Text(f"- {clean(note)}", style="dim")], look.width) for note in pool["notes"]]
    if pool["nodes"]:
        parts += [pool_nodes(pool["nodes"], look)]
    else:
        parts.append(Text("No nodes yet." if pool["wanted"] else "No nodes, and none are wanted."))
    return parts


def _cost(pool: PoolView) -> list[Text]:
    """What the pool costs, beside the same all on-demand."""
    cost, saved, instead = pool["cost_per_hour"], pool["saved_share"], pool["on_demand_cost_per_hour"]
    words = "cost not known" if cost is None else f"{money(cost)}/h"
    found = [Text(words if saved is None else f"{words}, {_compared(saved)}")]
    if instead is not None:
        found.append(Text(f"on-demand would cost {money(instead)}/h", style="dim"))
    if "spend_cap_per_hour" in pool:  # a daemon of an earlier version does not say
        cap = pool["spend_cap_per_hour"]
        found.append(Text(f"cap {'unlimited' if cap is None else f'{money(cap)}/h'}", style="dim"))
    return found


def _pool_segments(pool: PoolView, daemon: DaemonView) -> list[Text]:
    on_demand = f"on-demand {pool['on_demand_ready']}"
    if pool["temporary_on_demand"]:
        on_demand += f" ({pool['temporary_on_demand']} temporary)"
    segments = [
        Text.assemble(
            (clean(pool["name"]), "bold"),
            "  ",
            (pool["state"].upper(), _STATE_STYLE.get(pool["state"], "bold")),
        ),
        Text(_serving(pool), style=_short(pool["serving"], pool)),
        Text(_ready(pool), style=_short(pool["ready"], pool)),
        Text(f"spot {pool['spot_ready']} · {on_demand}"),
        Text(_mix(pool)),
        *_cost(pool),
    ]
    standby = [
        f"{count} {kind}"
        for kind, count in (("hot", pool["standby_hot"]), ("stopped", pool["standby_stopped"]))
        if count
    ]
    if standby:
        segments.append(Text(f"standby {', '.join(standby)}"))
    segments += [
        Text(f"spent {money(pool['spent_usd'])}, {_saved(pool['saved_usd'])} so far", style="dim"),
        *_day(pool),
        Text(_daemon_words(daemon), style="dim"),
    ]
    if pool["model"]:
        segments.append(Text(clean(pool["model"]), style="dim"))
    return segments


def _day(pool: PoolView) -> list[Text]:
    """What a million tokens cost in the last day, with people's work, beside what the API asks for them."""
    if "day" not in pool:
        return []
    own, api = pool["day"]["usd_per_mtok_people"], pool["day"]["api_usd_per_mtok"]
    words = "" if own is None else f"{small_money(own)} a million tokens"
    beside = "" if api is None else f"the API {small_money(api)}"
    dear = own is not None and api is not None and api < own
    text = ", ".join(part for part in (words, beside) if part)
    return [Text(f"24h: {text}", style="yellow" if dear else "dim")] if text else []


def _short(count: int, pool: PoolView) -> str:
    """The style of a count that should not be below wanted."""
    return "yellow" if count < pool["wanted"] else ""


def _serving(pool: PoolView) -> str:
    """What clients can reach against wanted: nodes, or units where those differ."""
    return f"{pool['serving']}/{pool['wanted']} {'units ' if pool['units'] else ''}serving"


def _ready(pool: PoolView) -> str:
    """What is ready: nodes, or units and the nodes that serve them where those differ."""
    nodes = f" ({plural(pool['ready_nodes'], 'node')})" if pool["units"] else ""
    return f"{pool['ready']} ready{nodes}"


def _compared(saved: float) -> str:
    """A price against on-demand, by the share that it saves."""
    whole = round(saved * 100)
    if not whole:
        return "as much as on-demand"
    return f"{whole}% saved" if whole > 0 else f"{-whole}% above on-demand"


def _saved(usd: float) -> str:
    """Money so far against on-demand."""
    return f"saved {money(usd)}" if usd >= 0 else f"{money(-usd)} more than on-demand"


def _mix(pool: PoolView) -> str:
    """The mix of the ready nodes without the standby, and the aim where it differs."""
    aim = _shares(pool["spot_wanted"], pool["wanted"])
    now = _shares(pool["spot_ready"], pool["ready"] - pool["standby_hot"])
    if pool["ready"] <= pool["standby_hot"]:
        return f"aim {aim}"
    return now if now == aim else f"{now} (aim {aim})"


def _shares(spot: int, total: int) -> str:
    share = min(100, round(100 * spot / max(1, total)))
    return f"{share}/{100 - share}"


def _daemon_words(daemon: DaemonView) -> str:
    failsafe = daemon.get("database_silent_s") is not None
    role = "leading" if daemon["leading"] else "failsafe" if failsafe else "watching"
    return f"{role}, last turn {short_time(daemon['last_turn_s'])} ago, up {age(daemon['uptime_s'])}"


def _problems(pool: PoolView, daemon: DaemonView, at: float, width: int) -> list[RenderableType]:
    found: list[tuple[str, str]] = []
    paused = daemon["paused"]
    if paused is not None:
        until = paused["until"]
        end = "until someone resumes" if until is None else f"resumes by itself in {age(until - at)}"
        found.append((f"paused by {paused['by']}: {paused['reason'] or 'no reason given'}; {end}", "magenta"))
    failsafe = daemon.get("database_silent_s") is not None  # the pool says so
    if not (daemon["leading"] or failsafe):
        found.append(("this daemon does not hold the lease: it watches and does not act", "yellow"))
    if not (daemon["journal_ok"] or failsafe):
        found.append(("the journal takes no writes: nothing destructive happens until it does", "red"))
    rejected = daemon["config"]["rejected"]
    if rejected is not None:
        found.append((rejection(rejected), "red"))
    if daemon["last_turn_s"] > _LATE_TURN:
        found.append((f"the loop has completed no turn for {age(daemon['last_turn_s'])}", "red"))
    found += [(problem, "red") for problem in pool["problems"]]
    return [pack([Text(f"! {clean(text)}", style=style)], width) for text, style in found]


def _pool_notices(notices: Sequence[NoticeView], look: Look) -> list[RenderableType]:
    ordered = sorted(notices, key=lambda notice: (notice["deadline"] is None, notice["deadline"] or 0.0))
    shown = ordered if look.wide else ordered[:_MANY_LINES]
    lines: list[RenderableType] = [pack(_notice_segments(notice, look), look.width) for notice in shown]
    if len(ordered) > len(shown):
        lines.append(Text(f"! and {plural(len(ordered) - len(shown), 'more notice')}: -o wide shows all"))
    return lines


def _notice_segments(notice: NoticeView, look: Look) -> list[Text]:
    remaining = notice["remaining_s"]
    if remaining is None:
        left, style = "no deadline", "cyan"
    elif remaining < 0:
        left, style = f"deadline passed {age(-remaining)} ago", "red"
    else:
        left, style = f"{countdown(remaining)} left", "red" if remaining < _HURRY else "yellow"
    segments = [
        Text.assemble(("! ", style), (clean(notice["node"]), "bold")),
        Text(f"{notice['kind']} notice" if notice["kind"] == "interruption" else notice["kind"]),
        Text(left, style=style),
        Text(clean(notice["stage"])),
    ]
    if notice["in_flight"] is not None:
        segments.append(Text(f"{plural(notice['in_flight'], 'request')} left"))
    if notice["replacement"]:
        phase = f" ({notice['replacement_phase']})" if notice["replacement_phase"] else ""
        segments.append(Text(f"replaced by {clean(notice['replacement'])}{phase}"))
    if look.wide:
        segments.append(Text(f"{notice['confidence']} by {clean(notice['source'])}", style="dim"))
    return segments


def _pool_swaps(swaps: Sequence[SwapView], at: float, look: Look) -> list[RenderableType]:
    shown = list(swaps) if look.wide else list(swaps)[:_MANY_LINES]
    lines: list[RenderableType] = [pack(_swap_segments(swap, at), look.width) for swap in shown]
    if len(swaps) > len(shown):
        lines.append(Text(f"~ and {plural(len(swaps) - len(shown), 'more swap')}: -o wide shows all"))
    return lines


def _swap_segments(swap: SwapView, at: float) -> list[Text]:
    start = swap["noticed_at"]
    segments = [
        Text.assemble(
            ("~ ", "yellow"), f"{clean(swap['outgoing'])} -> {clean(swap['incoming'] or 'not chosen yet')}"
        ),
        Text(clean(swap["stage"])),
        Text(f"began {age(at - start)} ago"),
    ]
    for word, moment in (
        ("detached", swap["detached_at"]),
        ("drained", swap["drained_at"]),
        ("replaced", swap["replaced_at"]),
    ):
        if moment is not None:
            segments.append(Text(f"{word} after {short_time(moment - start)}"))
    segments.append(Text(clean(swap["cause"]), style="dim"))
    return segments


# Next commands


def _no_pool(daemon: DaemonView) -> str:
    if daemon["leading"]:
        return "The daemon runs no pool."
    leads = f"{clean(daemon['leader'])} leads" if daemon["leader"] else "nobody leads yet"
    return f"Standby: {leads}. It knows the pool; this daemon takes over when it falls silent."


def _suggestions(view: StatusView) -> list[str]:
    pools = view["pools"]
    found: list[str] = []
    if not pools:
        return ["orchestrator status --watch"]
    if view["daemon"]["paused"] is not None:
        found.append("orchestrator resume")
    else:
        paused = (pool["name"] for pool in pools if pool["state"] == "paused")
        found += [f"orchestrator resume --pool {clean(name)}" for name in paused]
    noticed = [notice["node"] for pool in pools for notice in pool["notices"]]
    if noticed:
        found.append(f"orchestrator node {clean(noticed[0])}")
    if any(route["stands_in"] or route["servable"] is False for route in view.get("routes", [])):
        found.append("orchestrator routes")
    found += _named(problem for pool in pools for problem in pool["problems"])
    if any(pool["state"] not in ("ok", "paused") for pool in pools):
        found += ["orchestrator plan", "orchestrator events -f"]
    elif noticed:
        found.append("orchestrator plan")
    else:
        found += ["orchestrator status --watch", "orchestrator nodes -o wide"]
    return list(dict.fromkeys(found))


def _named(problems: Iterable[str]) -> list[str]:
    """The commands that problems name, each once; the one that checks that all is fixed comes last."""
    found = dict.fromkeys(clean(named) for problem in problems for named in _COMMAND.findall(problem))
    return sorted(found, key=lambda command: command == "orchestrator resume")


def _next(commands: Iterable[str], look: Look) -> Text:
    flags = f" {look.flags}" if look.flags else ""
    segments = [Text("Next:", style="dim"), *(Text(command + flags) for command in commands)]
    return pack(segments, look.width, gap="   ")
