"""What the tokens of a pool cost keys with dollars a day: nobody bills for them, and budgets count them.

It goes through the spend book as what providers cost does: the most that a request may come to is held before
it is sent, and made good by its usage after.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from cloud.ports import Clock
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.asked import Asked
from orchestrator.gateway.endings import Endings, Turned, Unserved
from orchestrator.gateway.job import Job
from orchestrator.gateway.spend_book import SpendBook
from orchestrator.gateway.spend_file import CapReached, Claim, Ticket, Unusable
from policies.routing import Trouble
from policies.spend import Price, Rates, Usage, cost, most

POOL = "pool/"
"""What the name of a pool has before it where that of a provider stands."""

_USUAL_ANSWER = 4096
"""Tokens held for an answer whose request sets no limit."""


@dataclass(frozen=True, slots=True)
class Charged:
    """What is held for a request that is under way at a pool."""

    ticket: Ticket
    price: Price
    book: SpendBook

    def settle(self, usage: Usage | None, *, answered: bool) -> None:
        """The request is over: book its usage, or, where there is none of an answer, what was held."""
        if usage is not None:
            self.book.settle(self.ticket, amount=cost(self.price, usage), usage=usage)
        elif answered:
            self.book.settle(self.ticket, amount=self.ticket.claim.amount, usage=None)
        else:
            self.book.release(self.ticket)


class Charge:
    """Charges the requests to one pool at `rates` to the keys that sent them."""

    def __init__(
        self,
        pool: str,
        rates: Rates,
        *,
        book: SpendBook,
        refusals: Refusals,
        endings: Endings,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._price = Price(rates)
        self._book = book
        self._refusals = refusals
        self._endings = endings
        self._clock = clock

    async def serve(
        self, job: Job, run: Callable[[Job], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Have `run` serve a request; what it came to is booked by `Charged.settle`, once it is over.

        Raises what `run` does; Unserved, where the dollars of the day do not allow the request.
        """
        if not job.counts or job.client is None or job.client.limits.usd_per_day is None:
            return await run(job)
        ticket = await self._hold(job, job.client.name, job.client.limits.usd_per_day)
        job.charged = Charged(ticket, self._price, self._book)
        try:
            return await run(job)
        except (Turned, Unserved):  # no node answered; who is asked next may cost nothing
            job.charged = None
            self._book.release(ticket)
            raise

    async def _hold(self, job: Job, key: str, cap: int) -> Ticket:
        """Hold the most that a request may come to. Raises Unserved."""
        claim = Claim(
            provider=POOL + self._pool,
            route="" if job.route is None else job.route.name,
            model=job.meter.model,
            amount=self._most(job.asked),
            until=job.exchange.deadline,
            key=key,
            key_cap=cap,
        )
        try:
            return await self._book.reserve(claim)
        except CapReached as reached:
            raise self._refusals.unpaid(job, reached) from None
        except Unusable as error:
            why = f"may not be charged for: {error}; without it no cap could be kept"
            turned = self._endings.turned(job, 503, "pool_unavailable", f"pool {self._pool} {why}")
            raise Unserved(Trouble.DOWN, why, turned) from None

    def _most(self, asked: Asked) -> int:
        """A token is a byte of the prompt at least."""
        output = _USUAL_ANSWER if asked.max_tokens is None else asked.max_tokens
        return most(self._price, prompt=len(asked.raw), output=output * asked.texts)
