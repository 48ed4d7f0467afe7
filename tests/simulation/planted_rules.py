"""Bugs in the daemon itself: a rule of it is switched off for one run.

Each is a context manager that replaces one function of the daemon's code and puts it back.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from unittest import mock

from orchestrator.api import reloading
from orchestrator.daemon.pool_run import PoolRun
from orchestrator.journal.sqlite import SqliteFile
from orchestrator.lease.file import FileLease
from orchestrator.lease.shared import SharedLease
from policies import (
    budget,
    drain,
    failsafe,
    interruption,
    invariants,
    observations,
    prices,
    trials,
)
from policies.events import NodeGone
from policies.evidence import Balancer, Condition, Routing, Status
from policies.limits import Budget
from policies.model import Confidence
from policies.placement import Scorer
from policies.plan_builder import Turn
from policies.regions import Sight

Patch = Callable[[], AbstractContextManager[object]]


def instead(owner: object, name: str, replacement: object) -> Patch:
    """Puts the replacement in the place of a function, or of a value.

    Raises TypeError for a function that could not be called as the real one is: it would plant another bug.
    """
    real = inspect.getattr_static(owner, name)
    if inspect.isfunction(real) and callable(replacement):
        taken = inspect.signature(real).parameters.values()
        by_name = [p.name for p in taken if p.kind is p.KEYWORD_ONLY]
        by_place = len(taken) - len(by_name)
        inspect.signature(replacement).bind(*range(by_place), **dict.fromkeys(by_name))
    return lambda: mock.patch.object(owner, name, replacement)


@contextlib.contextmanager
def _all(*patches: Patch) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch())
        yield


believes_provider_clock: Patch = instead(
    observations, "_seen", lambda now, instance, intent, *, real=observations._seen: real(now, instance, None)
)
"""A launch is dated by the provider's clock, on a host whose own is wrong."""


def _known(holds: bool) -> Condition:
    return Condition(status=Status.TRUE if holds else Status.FALSE)


adopts_strangers: Patch = instead(observations, "ours", lambda pool, memory, instance: _known(True))
"""What carries the pool's tag is the pool's."""

collects_nothing: Patch = instead(
    observations, "ours", lambda pool, memory, instance: _known(instance.token in memory.intents)
)
"""No garbage collection: what was launched and is not remembered is left running."""

spot_notices_take_all: Patch = instead(interruption, "applies", lambda notice, *, spot: not notice.cancelled)
"""A spot interruption takes out on-demand nodes too."""


def _any_hidden(sight: Sight, region: str, *, real: Callable[[Sight, str], str] = Sight.hidden) -> str:
    return next(filter(None, (real(sight, each) for each in sight.regions)), real(sight, region))


one_silent_region_freezes_all: Patch = instead(Sight, "hidden", _any_hidden)
"""Where one region cannot be listed nothing is launched or ended anywhere."""

drains_are_over_at_once: Patch = instead(drain, "finished", lambda rules, node: node.drain is not None)
"""A node is ended as soon as it drains."""

noticed_nodes_never_drain: Patch = instead(drain, "begins_now", lambda *_, **__: False)
"""Notices are heard and nothing follows."""

_checks_no_plan: Patch = instead(invariants, "check", lambda *_: ())
"""The last look at a plan in production, which would stop some of these bugs, sees nothing."""

sells_only_what_was_read: Patch = instead(
    prices,
    "may_be_bought",
    lambda world, memory, part: world.offerings[part].value if world.offerings[part].at else (),
)
"""What has no price by a reading of this daemon is not sold."""

spends_what_it_likes: Patch = partial(
    _all, _checks_no_plan, instead(Budget, "refuses_cost", lambda self, price, *, leaving=0.0: "")
)
"""The spend cap is not looked at."""

spends_what_others_have: Patch = instead(budget, "in_effect", lambda pool, grant: pool)
"""A pool aims at what it wants and spends what it has, whatever it was granted of the shared budget."""

launches_in_vain: Patch = partial(
    _all,
    _checks_no_plan,
    instead(trials, "first_starts", lambda *_: ""),
    instead(Scorer, "paused", lambda self, placement: ""),
)
"""What was not allowed, or never started, is launched again as if nothing had been."""

launches_what_it_likes: Patch = instead(Budget, "refuses", lambda self, price, *, leaving=0.0: "")
"""Neither the surge limit nor the launch rate is looked at."""

disturbs_what_it_likes: Patch = partial(
    _all, _checks_no_plan, instead(Turn, "may_choose", lambda self, units=1: True)
)
"""The disruption budget is not looked at."""


two_daemons_act: Patch = partial(
    _all,
    instead(FileLease, "valid", lambda self: self._file is not None),
    instead(SqliteFile, "keep_out", lambda self, db, epoch: None),
)
"""A daemon whose lease was taken goes on as if it had it, and the journal takes what it writes."""

deaf_beyond_the_lease: Patch = instead(SharedLease, "unanswered", lambda self: None)
"""A pair without its database takes nothing out of a balancer any more."""

goes_on_without_its_lease: Patch = instead(SharedLease, "valid", lambda self: self._until > 0.0)
"""A daemon whose lease ran out because the database does not answer goes on as if it led."""

takes_out_what_it_likes: Patch = partial(
    _all,
    _checks_no_plan,
    instead(
        failsafe, "_deadline", lambda node, begun: None if node.answers and node.notice is None else 1e12
    ),
)
"""Beyond the lease whatever is silent is taken out, with a notice or without."""

two_daemons_write_the_journal: Patch = instead(SqliteFile, "keep_out", lambda self, db, epoch: None)
"""A daemon whose lease was taken does nothing more, but writes what it sees into the other's journal."""

ends_what_serves: Patch = instead(drain, "why_it_stays", lambda node: "")
"""A node is ended on an acknowledgement alone."""

silence_is_loss: Patch = partial(
    _all,
    *(instead(Routing, word, frozenset()) for word in ("finds_healthy", "surely_healthy")),
    instead(Balancer, "silence_of", lambda self, node, since: math.inf),
)
"""What this host cannot reach is lost, whatever the balancers say."""


believes_every_report: Patch = instead(interruption, "CONFIRMED", frozenset(Confidence))
"""What a node says of itself is taken for the cloud's word, for as many nodes at once as say so."""


async def _unheard(*_: object) -> None:
    """What nobody listens to."""


loses_requests: Patch = instead(PoolRun, "tell", _unheard)
"""What operators ask for is lost."""

takes_up_anything: Patch = instead(
    reloading, "examine", lambda old, load, **_: reloading.Verdict(config=replace(old, path=None))
)
"""A configuration is reloaded without a look at it."""

forgets_nothing: Patch = partial(
    _all,
    instead(observations, "_missing", lambda *_: []),
    instead(
        observations,
        "_known",
        lambda *args, real=observations._known: [e for e in real(*args) if not isinstance(e, NodeGone)],
    ),
)
"""A node that has ended stays in memory for ever."""
