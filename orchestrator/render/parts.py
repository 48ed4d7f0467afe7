"""Parts of what the command line shows: node tables, event tables, plans, and how lines are laid out."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.render.gpu_words import gpu_rows, gpu_trouble
from orchestrator.words import age, clean, clock_time, instant, money, plural, short_time

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from orchestrator.views.api import (
        ActionView,
        AgentView,
        BootView,
        DeferredView,
        EventView,
        FailedBootView,
        GpusView,
        NodeView,
        PoolPlanView,
    )

_MANY_NODES: Final = 40  # above it, nodes that are simply well are shown as groups
_ROOMY: Final = 100  # columns from which times show their date
_WHY_WIDTH: Final = 24  # columns kept for the reason

_PHASE_STYLE: Final = {
    "pending": "cyan",
    "starting": "cyan",
    "ready": "green",
    "stopped": "dim",
    "draining": "yellow",
    "terminating": "yellow",
    "gone": "dim",
}
_TARGET_STYLE: Final = {
    "healthy": "green",
    "unhealthy": "red",
    "draining": "yellow",
    "initial": "cyan",
    "unknown": "red",
}
_ACTION_MARK: Final = {
    "launch": ("+", "green"),
    "start": ("+", "green"),
    "attach": ("+", "green"),
    "undrain": ("+", "green"),
    "drain": ("~", "yellow"),
    "detach": ("~", "yellow"),
    "stop": ("-", "yellow"),
    "terminate": ("-", "red"),
    "alarm": ("!", "bold red"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How to show: `width` in columns, `colour` on a terminal, `wide` for every column.

    `flags` is added to suggested commands, so that they reach the same daemon.
    """

    width: int
    colour: bool = False
    wide: bool = False
    flags: str = ""


def table_of(*headers: str, right: Collection[str] = (), wrapping: Collection[str] = ()) -> Table:
    """An empty table; only the columns in `wrapping` may break over several lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(
            header,
            justify="right" if header in right else "left",
            no_wrap=header not in wrapping,
            overflow="fold",
        )
    return table


def pack(segments: Sequence[Text], width: int, gap: str = "  ") -> Text:
    """Segments side by side, on as many lines as the width needs; later lines are indented."""
    packed, used = Text(), 0
    for segment in segments:
        if used and used + len(gap) + segment.cell_len > width:
            packed.append("\n" + gap)
            used = len(gap)
        elif used:
            packed.append(gap)
            used += len(gap)
        packed.append_text(segment)
        used += segment.cell_len
    return packed


def text_of(renderable: RenderableType, look: Look) -> str:
    """The text of anything that rich can show, without spaces at the ends of lines."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=look.width,
        height=10_000,
        force_terminal=look.colour,
        color_system="standard" if look.colour else None,
        no_color=not look.colour,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(renderable, crop=False)
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the node table. The lower `rank`, the longer it stays when the terminal is narrow."""

    header: str
    value: Callable[[NodeView], str]
    rank: int = 0
    right: bool = False
    style: Callable[[NodeView], str] = lambda _: ""


def _requests(node: NodeView) -> str:
    return "-" if node["in_flight"] is None else str(node["in_flight"])


def _continues(node: NodeView) -> str:
    """How answers that it began are finished elsewhere; a daemon of an older version does not say."""
    said = node.get("continuation")
    return "-" if said is None else said["way"]


def _cloud(node: NodeView) -> str:
    """Whose machine it is; a daemon of an older version does not say."""
    return node.get("provider", "-")


_COLUMNS: Final = (
    _Column("POOL", lambda node: node.get("pool", "-")),
    _Column("NODE", lambda node: node["id"], style=lambda node: "bold" if urgency(node)[0] < 3 else ""),
    _Column("MARKET", lambda node: node["market"]),
    _Column("CLOUD", _cloud),
    _Column("ZONE", lambda node: node["zone"], rank=2),
    _Column("TYPE", lambda node: node["instance_type"], rank=3),
    _Column("UNITS", lambda node: str(node["units"]), rank=4, right=True),
    _Column("PHASE", lambda node: node["phase"], style=lambda node: _PHASE_STYLE.get(node["phase"], "")),
    _Column("AGE", lambda node: age(node["age_s"]), right=True),
    _Column("REQ", _requests, right=True),
    _Column(
        "TARGET",
        lambda node: node["target"] or "-",
        rank=1,
        style=lambda node: _TARGET_STYLE.get(node["target"] or "", ""),
    ),
    _Column("CONDITIONS", lambda node: ",".join(node["conditions"]) or "-", rank=9),
    _Column("CONTINUES", lambda node: _continues(node), rank=9),
    _Column("$/H", lambda node: _dollars(node["price"]), rank=9, right=True),
    _Column("ADDRESS", lambda node: node["address"] or "-", rank=9),
    _Column("TOKEN", lambda node: node["token"] or "-", rank=9),
)


def urgency(node: NodeView) -> tuple[int, bool, str, str]:
    """Sort key: what needs a look first, then by market, zone and id, so that rows keep their place."""
    if {"noticed", "reported"} & {*node["conditions"]} or node["phase"] == "draining":
        rank = 0
    elif node["phase"] == "ready" and not node["healthy"]:
        rank = 1
    elif node["phase"] in ("pending", "starting", "terminating"):
        rank = 2
    else:
        rank = 4 if node["phase"] in ("stopped", "gone") else 3
    return rank, node["market"] != "spot", node["zone"], node["id"]


def _calm(node: NodeView) -> bool:
    return urgency(node)[0] == 3 and not node["conditions"] and node["target"] == "healthy"


def pool_nodes(items: Sequence[NodeView], look: Look) -> RenderableType:
    """The nodes of a pool; of a large one those that need a look, and a count of the rest."""
    ordered = sorted(items, key=urgency)
    if look.wide or len(ordered) <= _MANY_NODES:
        return node_table(ordered, look)
    loud = [node for node in ordered if not _calm(node)]
    calm = [node for node in ordered if _calm(node)]
    parts: list[RenderableType] = []
    if loud:
        parts.append(node_table(loud, look))
    if calm:
        parts += [Text(), _calm_table(calm)]
    return Group(*parts)


def _dollars(price: float | None) -> str:
    """A price in a column."""
    return "?" if price is None else f"{price:.2f}"


def _calm_table(items: Sequence[NodeView]) -> Table:
    """Nodes that are ready and healthy, counted by where they are."""
    groups: dict[tuple[str, str, str], list[NodeView]] = {}
    for node in items:
        groups.setdefault((node["market"], node["zone"], node["instance_type"]), []).append(node)
    table = table_of("READY AND WELL", "MARKET", "ZONE", "TYPE", "REQ", "$/H", right={"REQ", "$/H"})
    for (market, zone, kind), members in sorted(
        groups.items(), key=lambda item: (item[0][0] != "spot", item[0])
    ):
        prices = [node["price"] for node in members]
        table.add_row(
            plural(len(members), "node"),
            market,
            clean(zone),
            clean(kind),
            str(sum(node["in_flight"] or 0 for node in members)),
            _dollars(None if None in prices else sum(price or 0.0 for price in prices)),
        )
    return table


def node_table(items: Sequence[NodeView], look: Look) -> Table:
    """One line a node, in the given order, with the reason for its state."""
    columns = _columns_that_fit(items, look)
    table = table_of(
        *(column.header for column in columns),
        "WHY",
        right={column.header for column in columns if column.right},
        wrapping={"WHY"},
    )
    for node in items:
        cells = [Text(clean(column.value(node)), style=column.style(node)) for column in columns]
        table.add_row(*cells, Text(clean(node["why"])))
    return table


def _columns_that_fit(items: Sequence[NodeView], look: Look) -> list[_Column]:
    """The most telling columns that leave room for the reason."""
    alike = all(node["units"] == 1 for node in items)
    unsaid = {"UNITS"} if alike else set()
    unsaid |= set() if any("pool" in node for node in items) else {"POOL"}
    unsaid |= set() if len(set(map(_cloud, items))) > 1 else {"CLOUD"}
    columns = [column for column in _COLUMNS if column.header not in unsaid]
    if look.wide:
        return columns

    def space(column: _Column) -> int:
        return 2 + max(len(column.header), *(len(column.value(node)) for node in items))

    chosen = [column for column in columns if column.rank == 0]
    left = look.width - _WHY_WIDTH - sum(space(column) for column in chosen)
    for column in sorted((column for column in columns if 0 < column.rank < 9), key=lambda item: item.rank):
        if space(column) <= left:
            chosen.append(column)
            left -= space(column)
    return [column for column in columns if column in chosen]


def node_card(node: NodeView) -> list[RenderableType]:
    """Everything about one node, one fact a line."""
    conditions = ", ".join(node["conditions"]) or "none"
    target = node["target"] or "not in the load balancer"
    load = (
        "not known" if node["in_flight"] is None else f"{node['running']} running, {node['waiting']} waiting"
    )
    units = f", {node['units']} units" if node["units"] > 1 else ""
    cost = "price not known" if node["price"] is None else f"{money(node['price'])}/h"
    on = f" on {node['provider']}" if "provider" in node else ""
    what = f"{node['market']} {node['instance_type']} in {node['zone']}{on}, {cost}{units}"
    rows = (
        ("what", what),
        ("why", node["why"]),
        ("conditions", conditions),
        ("target", target),
        ("requests", load),
        ("continues", _continues_in_words(node)),
        *((("adapters", ", ".join(node["adapters"])),) if node.get("adapters") else ()),
        ("address", node["address"] or "not known yet"),
        (
            "launched",
            f"{instant(node['launched_at'])}, {age(node['age_s'])} ago, token {node['token'] or '-'}",
        ),
    )
    head = Text.assemble(
        (clean(node["id"]), "bold"), "  ", (node["phase"].upper(), _PHASE_STYLE.get(node["phase"], ""))
    )
    return [head, _facts(rows)]


def _continues_in_words(node: NodeView) -> str:
    said = node.get("continuation")
    if said is None:
        return "not known yet"
    words = {
        "derender": "what it began, another node finishes",
        "clean": "plain text that it began, another node finishes",
        "none": "what it began ends with an error when it is lost",
    }
    text = words.get(said["way"], said["way"])
    return f"{text}: {said['why']}" if said["why"] else text


def agent_card(agent: AgentView) -> list[RenderableType]:
    """What a node's agent last said of it, one fact a line."""
    rows = [("agent", f"heard {age(agent['heard_s'])} ago")]
    rows += gpu_rows(agent["gpus"], agent["xids"])
    rows += [("not read", error) for error in agent["errors"]]
    boot = agent.get("boot")  # a daemon of an older version does not say
    if boot is not None:
        rows += _boot_rows(boot)
    return [_facts(rows)]


def gpus_card(gpus: GpusView) -> list[RenderableType]:
    """What a node's GPUs ask for and how fast it is; and all of them where an exporter was read for it."""
    rows: list[tuple[str, str]] = []
    if gpus["source"] == "dcgm" and gpus["read_s"] is not None:
        rows += [("exporter", f"read {age(gpus['read_s'])} ago"), *gpu_rows(gpus["gpus"], gpus["xids"])]
    rows += gpu_trouble(gpus)
    return [_facts(rows)] if rows else []


def _boot_rows(boot: BootView) -> list[tuple[str, str]]:
    """How far the start of the engine came, and the checks that failed."""
    restarts = f", {plural(boot['restarts'], 'restart')}" if boot["restarts"] else ""
    stage = f"{boot['stage'] or 'unknown stage'}{'' if boot['ok'] else ', not well'}{restarts}"
    rows = [("boot", f"{stage}: {boot['detail']}" if boot["detail"] else stage)]
    return rows + [
        ("check failed", f"{check['name']}: {check['text']}") for check in boot["checks"] if not check["ok"]
    ]


def failed_boot_card(boot: FailedBootView) -> list[RenderableType]:
    """Why a node never became ready, what can be done about it, and what it wrote last."""
    rows = [("boot failed", f"{instant(boot['at'])}, {boot['placement']}: {boot['why']}")]
    rows += [("to do", boot["remedy"])] if boot["remedy"] else []
    parts: list[RenderableType] = [_facts(rows)]
    # Not wrapped: a command is to be copied.
    parts += [Text(f"    {clean(command)}", no_wrap=True, overflow="ignore") for command in boot["commands"]]
    wrote = "what it wrote last:" if boot["console"] else "empty, or it could not be read"
    parts.append(_facts([("console", wrote)]))
    parts += [Text(f"  | {clean(line)}", style="dim") for line in boot["console"]]
    return parts


def _facts(rows: Iterable[tuple[str, str]]) -> Padding:
    card = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    card.add_column(style="dim", no_wrap=True)
    card.add_column(overflow="fold")
    for name, value in rows:
        card.add_row(name, Text(clean(value)))
    return Padding(card, (0, 0, 0, 2))


def event_table(items: Sequence[EventView], look: Look, *, of_one_node: bool = False) -> Table:
    """A table of events. The events of one node show the time since the one before instead of the node."""
    headers = ["SEQ"] if look.wide else []
    several = not of_one_node and any("pool" in item for item in items)
    headers += ["TIME", "AFTER", "EVENT"] if of_one_node else ["TIME", *["POOL"] * several, "EVENT", "NODE"]
    table = table_of(*headers, "WHAT", right={"SEQ", "AFTER"}, wrapping={"WHAT"})
    roomy = look.wide or look.width >= _ROOMY
    before: float | None = None
    for item in items:
        cells = [str(item["seq"])] if look.wide else []
        cells.append(instant(item["at"]) if roomy else clock_time(item["at"]))
        if of_one_node:
            cells.append("" if before is None else f"+{short_time(item['at'] - before)}")
        if several:
            cells.append(clean(item.get("pool", "-")))
        cells.append(clean(item["kind"]))
        if not of_one_node:
            cells.append(clean(item["node"] or "-"))
        table.add_row(*cells, event_text(item))
        before = item["at"]
    return table


def event_text(item: EventView) -> str:
    """What an event says beyond its kind."""
    text = clean(item["text"])
    return "" if text == item["kind"] else text.removeprefix(f"{item['kind']}: ")


def pool_plan(pool: PoolPlanView, look: Look) -> list[RenderableType]:
    """One pool's plan: what would be done (+ adds, ~ takes out of service, - ends), what waits, and why."""
    actions, deferred = pool["actions"], pool["deferred"]
    parts: list[RenderableType] = [
        Text.assemble((clean(pool["name"]), "bold"), f"  {_plan_summary(actions, deferred)}")
    ]
    if actions or deferred:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for wrapping in (False, False, False, True):
            table.add_column(no_wrap=not wrapping, overflow="fold")
        for action in actions:
            mark, style = _ACTION_MARK.get(action["kind"], ("*", ""))
            table.add_row(
                Text(mark, style=style),
                Text(action["kind"], style=style),
                _subject(action),
                clean(action["reason"]),
            )
        for item in deferred:
            table.add_row(
                Text("."), Text(f"no {item['kind']} yet", style="dim"), _subject(item), clean(item["reason"])
            )
        parts.append(Padding(table, (0, 0, 0, 2)))
    parts += [Text(f"- {clean(note)}", style="dim") for note in pool["notes"]]
    if look.wide and pool["targets"]:
        table = table_of("TARGET", "ADDRESS", "PHASE", "WEIGHT", right={"WEIGHT"})
        for target in pool["targets"]:
            table.add_row(
                clean(target["id"]), clean(target["address"]), target["phase"], str(target["weight"])
            )
        parts += [Text(), table]
    return parts


def _plan_summary(actions: Sequence[ActionView], deferred: Sequence[DeferredView]) -> str:
    counts: dict[str, int] = {}
    for action in actions:
        counts[action["kind"]] = counts.get(action["kind"], 0) + 1
    words = [f"{count} {kind}" for kind, count in counts.items()]
    if deferred:
        words.append(f"{len(deferred)} held back")
    return ", ".join(words) if words else "nothing to do"


def _subject(item: ActionView | DeferredView) -> str:
    return clean(item["node"] or item["placement"] or "-")
