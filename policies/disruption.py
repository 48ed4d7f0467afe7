"""The gate: whether an act on a node is allowed for a cause, by two tables.

What it decides: for every act that takes a node away or brings it back (enter or leave the target set, drain,
undrain, stop, end) whether it may be done now, and if not, why. Policies only propose;
`policies.plan_builder` asks here before it plans anything.
Why: what must be known of a node, and how much must stay without it, are questions of the act and the cause,
and not of the policy that happens to ask.
Never: what is not known counts as "no". An act that needs a node to answer is refused while nobody knows; one
that needs a node to hold no requests is refused while it may.

`ACTS` says what each act needs to be known. `CAUSES` says for each cause when it is over, so that its node
may return; how much must stay when its node goes; and how a refusal is told. The disruption budget counts
what goes by choice (`Cause.by_choice`). A drain for any cause but a notice waits for a clear view.

Example: a node that is given back drains only while what may be relied on is enough without it, and no more
at once than the disruption budget allows; one that is noticed drains late where too few others serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies import drain as draining
from policies.actions import Cause
from policies.model import Phase, Word
from policies.node import Node

if TYPE_CHECKING:
    from policies.plan_builder import Turn


class Act(Word):
    """What may be done to a node that takes it away or brings it back."""

    ENTER = "enter"
    LEAVE = "leave"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    STOP = "stop"
    END = "end"


_VERBS = {Act.UNDRAIN: "go back to work"}


class Over(Word):
    """When the cause of a drain is over."""

    NO_NOTICE = "its notice no longer holds"
    WITHDRAWN = "the drain request was taken back"
    ANSWERS = "it answers again"  # and is needed
    SHORT = "what stays is too little"
    NEVER = "never"


# -- what is known of a node: True, False, or None where nobody knows ------------------------------------


def reachable(turn: Turn, node: Node) -> bool | None:
    """It has booted and answers. False: it has been silent for long, and the fault is not on this side.

    One look that failed is no silence, nor is a look from before this daemon woke up.
    """
    if node.heard.since is None:
        return True if node.healthy and (node.heard.known or node.exists.holds) else None
    return None if node.healthy or turn.fleet.suspect else False


def answers(_turn: Turn, node: Node) -> bool | None:
    """Its engine was ready at some time and answered this daemon's last look. None: it did not look."""
    return node.ready_at is not None and node.heard.holds if node.heard.known else None


def answers_or_is_sent_to(turn: Turn, node: Node) -> bool | None:
    """The same; and of one that nobody has looked at, that went by choice and still gets requests."""
    known = answers(turn, node)
    chosen = node.drain is not None and node.drain.cause.by_choice
    return True if known is None and chosen and node.routed.holds else known


def noticed(_turn: Turn, node: Node) -> bool:
    """A notice that is believed takes it away."""
    return node.notice is not None


def may_return(_turn: Turn, node: Node) -> bool:
    """Its drain is not for a cause that is never over. What is to end without a drain may, if it does not."""
    return node.drain is None or CAUSES[node.drain.cause].over is not Over.NEVER


def cannot_tell(node: Node) -> bool:
    """True for a node of which only balancers could tell that were not heard: a journal may be lost."""
    heard = node.evidence.routing.confirmed or node.never_served
    return not heard and node.reachable.open


def waits_for_adapters(turn: Turn, node: Node) -> bool:
    """It does not hold all the adapters yet that it should have as a target."""
    return turn.adapters.waits(node.id)


def works(turn: Turn, node: Node) -> bool:
    """It is at work, or may be: it answers, a balancer finds it healthy, or nobody can tell.

    A node that only this host cannot reach is at work; so may one be of which no journal tells, until
    balancers were heard, and any that serves where so many are silent that the fault may be on this side.
    """
    if node.phase is Phase.READY and node.healthy and not node.aside:
        return True
    silent = node.reachable.fails() and not turn.fleet.suspect
    if node.found_healthy or (node.serving and not silent):
        return True
    return node.may_be_at_work or cannot_tell(node)


# -- how much must stay ------------------------------------------------------------------------------------


def _late(turn: Turn, node: Node) -> str:
    """A noticed node serves until enough others do, or until the last instant."""
    others, ready = turn.serving_without(node), turn.reliable_in_all
    if draining.begins_now(turn.pool, node, now=turn.now, serving_without=others, ready=ready):
        return ""
    return f"{others} other {turn.pool.noun()} serve and {ready} are ready, {turn.pool.replicas} are wanted"


def _with_silent(turn: Turn, node: Node) -> str:
    """In a mass silence ready and silent units together do not fall below wanted."""
    if not turn.fleet.suspect or turn.enough_with_silent(node):
        return ""
    return "many others are silent too, and too few new ones are ready yet"


def _replaced(turn: Turn, node: Node) -> str:
    """Its replacement is ready, or it does not work."""
    return "" if turn.enough_without(node) or not works(turn, node) else "its replacement is not ready"


def _replaced_in_time(turn: Turn, node: Node) -> str:
    """The same, until the request has waited for so long that `min_serving` is enough."""
    overdue = asked_long_ago(turn, node) and turn.serving_without(node) >= turn.pool.min_serving
    return "" if overdue else _replaced(turn, node)


def _others_serve(turn: Turn, node: Node) -> str:
    """A broken GPU may answer wrongly: its node waits for its replacement only where nobody else serves."""
    return "" if turn.serving_without(node) > 0 else _replaced(turn, node)


def _wanted(turn: Turn, node: Node) -> str:
    """Wanted in all, and the on-demand floor, may be relied on without it."""
    return "" if turn.enough_without(node) else "too little else may be relied on"


def _wanted_and_hot(turn: Turn, node: Node) -> str:
    """The same, and the hot standby besides."""
    return "" if turn.enough_without(node, spare=turn.pool.standby.hot) else "no other node is to spare"


def _anything(_turn: Turn, _node: Node) -> str:
    return ""


def asked_long_ago(turn: Turn, node: Node) -> bool:
    """True when an operator asked, and none came within a boot time-out in which somebody was awake.

    Of the time before nobody knows how long it was: this host's clock may have been set since.
    """
    if node.operator is None or node.operator.cause is not Cause.OPERATOR:
        return False
    since = turn.evidence.watched_since(node.operator.since)
    return turn.now - since >= turn.pool.health.boot_timeout


# -- the tables --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CauseRule:
    """What a cause means for a node that is to go.

    `headroom` says why too little would stay, empty when enough does. `says` tells a refusal, and `out` the
    same of a node that gets no requests anyway; empty: as `says`.
    """

    over: Over
    headroom: Callable[[Turn, Node], str]
    says: str
    out: str = ""


_ASKED = "{node}: drain asked for; it serves on: {why}", "{node}: drain asked for; it waits: {why}"
_NOTICED = "{node} is noticed and keeps serving: {why}", "{node} is noticed and gets no requests: {why}"
_ADVISED = "{node}: rebalance recommended; it serves on: {why}", "{node}: rebalance recommended: {why}"
_SURPLUS = "{node} is surplus and waits: {why}"
_STAYS = "{node} should drain and stays: {why}"

CAUSES: Mapping[Cause, CauseRule] = {
    Cause.NOTICE: CauseRule(Over.NO_NOTICE, _late, *_NOTICED),
    Cause.SICK: CauseRule(Over.ANSWERS, _with_silent, "{node} is silent and stays: {why}"),
    Cause.BOOT: CauseRule(Over.NEVER, _anything, _STAYS),
    Cause.OPERATOR: CauseRule(Over.WITHDRAWN, _replaced_in_time, *_ASKED),
    Cause.GPU: CauseRule(Over.WITHDRAWN, _others_serve, *_ASKED),
    Cause.GPU_DOUBT: CauseRule(Over.WITHDRAWN, _replaced, *_ASKED),
    Cause.OUTDATED: CauseRule(Over.WITHDRAWN, _replaced, *_ASKED),
    Cause.EXCESS: CauseRule(Over.SHORT, _wanted, _SURPLUS),
    Cause.RETURN: CauseRule(Over.SHORT, _wanted, _SURPLUS),
    Cause.REBALANCE: CauseRule(Over.SHORT, _wanted_and_hot, *_ADVISED),
    Cause.STANDBY: CauseRule(Over.NEVER, _anything, _STAYS),
    Cause.SHORT: CauseRule(Over.NEVER, _anything, _STAYS),
}
"""What each cause means. Those of launches alone (standby, short) never took a node away."""


Check = Callable[["Turn", Node, Cause], str]
"""Why an act may not be done to a node for a cause; empty when nothing speaks against it."""


def _needs(ask: Callable[[Turn, Node], bool | None], answer: bool, why: str) -> Check:
    """A check of what is known: Unknown is not the answer that is needed."""

    def check(turn: Turn, node: Node, _cause: Cause) -> str:
        return "" if ask(turn, node) is answer else why

    return check


def _headroom(turn: Turn, node: Node, cause: Cause) -> str:
    """Nothing relies on a node whose end was asked for."""
    return "" if node.phase is Phase.TERMINATING else CAUSES[cause].headroom(turn, node)


def _budget(turn: Turn, node: Node, cause: Cause) -> str:
    """The disruption budget counts what works and goes by choice."""
    if not cause.by_choice or node.phase is Phase.TERMINATING or turn.may_choose(node.units):
        return ""
    if not cause.voluntary and not works(turn, node):
        return ""
    return f"{turn.by_choice} {turn.pool.noun()} are draining by choice already"


def _no_request(turn: Turn, node: Node, _cause: Cause) -> str:
    """A request to go holds, unless what stays is too little and it has not waited for a boot time-out."""
    holds = node.operator is not None and (asked_long_ago(turn, node) or turn.enough_without(node))
    return "it was asked to go" if holds else ""


def _not_needed(turn: Turn, node: Node, cause: Cause) -> str:
    """What is to end is not needed: neither a node that drains and might return, nor a surplus one.

    A surplus node that is not ready may be the first that is; a standby that runs may be what worked where
    the journal is lost.
    """
    if node.phase is Phase.TERMINATING:
        return ""
    if node.drain is not None:
        needed = node.ready_at is not None and needed_again(turn, node)
    else:
        chosen = cause in (Cause.EXCESS, Cause.STANDBY)
        rests = node.aside and node.phase is Phase.STOPPED
        floor = None if not node.aside else 0
        needed = chosen and not rests and not turn.enough_without(node, floor=floor)
    return "too little else may be relied on" if needed else ""


def _holds_nothing(_turn: Turn, node: Node, _cause: Cause) -> str:
    """It surely gets no requests and holds none; what nobody knows counts as holding some."""
    return draining.why_it_stays(node)


def _clear_view(turn: Turn, node: Node, _cause: Cause) -> str:
    """The lease, the journal and a list of its region, and no pause."""
    return turn.frozen(node.placement.region)


def _clear_view_unless_noticed(turn: Turn, node: Node, cause: Cause) -> str:
    """The same; a notice waits for none of them."""
    return "" if cause is Cause.NOTICE else turn.frozen(node.placement.region)


def _leads(turn: Turn, node: Node, _cause: Cause) -> str:
    """The lease. What goes back to work ends nothing and costs nothing: it waits for nothing else."""
    return "" if turn.world.leading else turn.frozen(node.placement.region)


_ENDS = (_holds_nothing, _not_needed, _clear_view)

ACTS: Mapping[Act, tuple[Check, ...]] = {
    Act.ENTER: (
        _needs(reachable, True, "it does not answer"),
        _needs(waits_for_adapters, False, "it lacks adapters"),
    ),
    Act.LEAVE: (_needs(reachable, False, "it may answer"),),
    Act.DRAIN: (_headroom, _budget, _clear_view_unless_noticed),
    Act.UNDRAIN: (
        _needs(noticed, False, "a notice takes it away"),
        _needs(may_return, True, "it is to end"),
        _no_request,
        _needs(answers_or_is_sent_to, True, "it does not answer"),
        _leads,
    ),
    Act.STOP: _ENDS,
    Act.END: _ENDS,
}
"""What each act needs, in the order in which it is asked."""


def may(turn: Turn, act: Act, node: Node, cause: Cause) -> str:
    """Why an act may not be done to a node for a cause now, in words; empty when it may."""
    for check in ACTS[act]:
        if why := check(turn, node, cause):
            return why
    return ""


def refusal(act: Act, node: Node, cause: Cause, why: str) -> tuple[str, str]:
    """A refusal in words, and the same for the case that the node gets no requests."""
    if act is not Act.DRAIN:
        stays = "may not" if act is Act.UNDRAIN else "stays"
        says = out = f"{{node}} should {_VERBS.get(act, act)} and {stays}: {{why}}"
    else:
        says = CAUSES[cause].says
        out = CAUSES[cause].out or says
    return says.format(node=node.id, why=why), out.format(node=node.id, why=why)


# -- when a draining node returns --------------------------------------------------------------------------


def why_back(turn: Turn, node: Node) -> str:
    """Why a draining node should go back to work; empty while the cause of its drain holds.

    Where a notice no longer holds or a request was taken back it may stay. One that went by choice, or whose
    silence is over, returns when what stays is too little and it still gets requests: between a decision and
    the balancer's acknowledgement others may have gone, and an old journal may tell of drains that were taken
    back since.
    """
    if over(node):
        return str(over(node))
    if not node.aside and node.routed.holds and needed_again(turn, node):
        return "what stays is too little, and it still gets requests"
    return ""


def over(node: Node) -> Over | None:
    """How the cause of a drain is over, whatever the others do; None while it holds."""
    if node.drain is None or node.notice is not None or node.operator is not None:
        return None
    found = CAUSES[node.drain.cause].over
    return found if found in (Over.NO_NOTICE, Over.WITHDRAWN) else None


def needed_again(turn: Turn, node: Node) -> bool:
    """A draining node need not go, may answer, and the rest is too little to rely on.

    One that nobody has looked at yet may: nor has anybody looked at the rest. One whose GPU is broken does
    not: it may answer wrongly.
    """
    if node.drain is None or node.notice is not None or asked_long_ago(turn, node):
        return False
    cause = node.drain.cause
    known = answers(turn, node)
    returns = known or (known is None and cause.by_choice)
    wrong = cause is Cause.GPU or CAUSES[cause].over is Over.NEVER
    return bool(returns) and not wrong and not turn.enough_without(node)
