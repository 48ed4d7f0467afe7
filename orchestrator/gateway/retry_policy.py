"""What follows a failed attempt: another one, the rest of the stream at another target, or the end.

Decisions only, over the table, the budget and what the request says of itself.
"""

from __future__ import annotations

from typing import Protocol

from orchestrator.gateway.blame import RetryBudget
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.failure import Blame, Failure
from orchestrator.gateway.request import Exchange, Payment, Stage, Suspect
from orchestrator.gateway.targets import TargetTable


class Tried(Protocol):
    """What the decisions ask of a request. `broke_at` is when its stream last broke, 0 for never."""

    exchange: Exchange
    broke_at: float

    @property
    def repeatable(self) -> bool:
        """Whether it may run twice."""

    @property
    def sought(self) -> bool:
        """Whether it is about something that one target has, which one is not known."""

    def obstacle(self) -> str:
        """Why its stream cannot be continued now; empty when it can."""

    def fits(self, entry: Entry) -> bool:
        """Whether a target can bring the rest of its stream."""

    @property
    def revision(self) -> str:
        """The revision of its adapter that can bring the rest of its stream; empty for any."""


class RetryPolicy:
    """Decides for all requests; holds nothing of one."""

    def __init__(self, table: TargetTable, budget: RetryBudget, max_retries: int) -> None:
        self._table = table
        self._budget = budget
        self._max_retries = max_retries

    def arrived(self) -> None:
        """A request is here."""
        self._budget.deposit()

    def succeeded(self, tried: Tried) -> None:
        """Its answer is whole, which shows whose fault the failures in doubt were."""
        if tried.broke_at:
            self._budget.refund()
        if not tried.sought:
            for suspect in tried.exchange.suspects:
                self._table.blame(suspect.entry, suspect.failure)

    def blame(self, exchange: Exchange, entry: Entry, failure: Failure, retry_after: float | None) -> None:
        """Hold the failure against the target, or remember it until a peer shows whose fault it was."""
        if failure is Failure.STALE:
            return
        if failure is Failure.NO_ADAPTER and exchange.wish.held is not None:
            self._table.lacks(entry, exchange.wish.held)
            return
        exchange.wish.failed_at(entry)
        if failure.blames is Blame.DOUBT:
            exchange.suspects.append(Suspect(entry, failure))
        else:
            self._table.blame(entry, failure, retry_after)

    def goes_on(
        self, tried: Tried, entry: Entry, failure: Failure, *, answered: bool, sent_at: float, now: float
    ) -> bool:
        """Whether the request, or the rest of its stream, goes to another target; moves it on if so.

        `entry` has failed it; `answered`: with an answer that its client could be given.
        """
        paid = Payment(self._budget, entry, failure, sent_at=sent_at, now=now)
        if tried.exchange.stage is not Stage.SENT:
            return self._continues(tried, failure, paid, now)
        if answered and not self._worth_asking(tried, failure):
            return False
        again = tried.exchange.may_retry(
            failure,
            repeatable=tried.repeatable,
            max_retries=self._max_retries,
            paid=paid,
            sought=tried.sought,
        )
        if again:
            tried.exchange.move(Stage.QUEUED)
        return again

    def _worth_asking(self, tried: Tried, failure: Failure) -> bool:
        """Whether others are asked where an answer is here: of a 4xx, which most often is the request's own
        fault, only a target that is free, and none that would have to load an adapter first.
        """
        wish = tried.exchange.wish
        if failure is Failure.REFUSED_HERE and not tried.sought:
            return self._table.choose(wish) is not None
        return self._table.hopeful(wish) and not (wish.adapter and self._table.down(wish))

    def _continues(self, tried: Tried, failure: Failure, paid: Payment, now: float) -> bool:
        exchange = tried.exchange
        if tried.obstacle() or not exchange.may_continue(failure, paid):
            return False
        exchange.wish.fits, exchange.wish.revision = tried.fits, tried.revision
        if exchange.stage is Stage.STREAMING:
            tried.broke_at = now
            exchange.move(Stage.CONTINUING)
        return True
