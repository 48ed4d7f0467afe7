"""Money of one request to a provider: priced, held before it is sent, and settled whatever becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.provider_metrics import ProviderMetrics
from orchestrator.gateway.spend_book import SpendBook
from orchestrator.gateway.spend_file import CapReached, Claim, Ticket, Unusable
from policies.spend import Price, Usage, cost, dollars
from policies.spend_bound import Bound, ceiling

log = structlog.get_logger("gateway")


class NotAffordable(Exception):
    """Nothing may be sent; the message says which cap, or what is not known under one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays whom: a route, a provider's model and a client's key, empty where it is nobody's, with their
    caps in picodollars a day, None for none.
    """

    provider: str
    model: str
    route: str
    provider_cap: int | None
    route_cap: int | None
    key: str = ""
    key_cap: int | None = None

    @property
    def capped(self) -> bool:
        """Whether there is a cap at all."""
        return not (self.provider_cap is None and self.route_cap is None and self.key_cap is None)


class Stake:
    """What is held for one request. `usage` is what the provider reported, None until then.

    It counts as owed from `sent` on, unless `refused` says that the provider did not take it.
    """

    __slots__ = ("owed", "usage")

    def __init__(self) -> None:
        self.owed = False
        self.usage: Usage | None = None

    def sent(self) -> None:
        """From here the provider may have it, and bill it."""
        self.owed = True

    def refused(self) -> None:
        """The provider bills nothing: it was not reached, or said that it did not take the request."""
        self.owed = False


class Purse:
    """Pays for the requests of one account."""

    def __init__(self, account: Account, *, book: SpendBook, metrics: ProviderMetrics, clock: Clock) -> None:
        self._account = account
        self._book = book
        self._metrics = metrics
        self._clock = clock

    async def hold(self, asked: Bound, price: Price | None, *, seconds: float) -> Held:
        """Hold the most that a request may cost, which is over after so many seconds. Raises NotAffordable;
        CapReached where the dollars a day of the client's key are in the way.

        `price` is None where it is not known. Without a cap a request is sent also then, and where the spend
        file cannot be written: what it cost is then owed to the file.
        """
        account = self._account
        limit = None if price is None else ceiling(price, asked)
        if account.capped:
            if price is None:
                raise NotAffordable(f"no price of {account.model} is known, and there is a cap to keep")
            if limit is not None and limit.why:
                raise NotAffordable(f"{limit.why}, and there is a cap to keep")
        amount = None if limit is None or limit.why else limit.amount
        claim = Claim(
            provider=account.provider,
            route=account.route,
            model=account.model,
            amount=amount,
            provider_cap=account.provider_cap,
            route_cap=account.route_cap,
            until=self._clock.now() + seconds,
            key=account.key,
            key_cap=account.key_cap,
        )
        try:
            ticket = await self._book.reserve(claim)
        except CapReached as reached:
            if reached.of_key:
                raise
            self._metrics.cap_reached(account.provider, account.route)
            raise NotAffordable(str(reached)) from None
        except Unusable as error:
            if account.capped:
                raise NotAffordable(f"{error}; without it no cap could be kept") from None
            ticket = self._book.unheld(claim)
        return Held(ticket, None if asked.why else price)

    @contextmanager
    def at_stake(self, held: Held) -> Iterator[Stake]:
        """Settle at the end, however it comes: by the usage, else at the most; or release it."""
        stake = Stake()
        try:
            yield stake
        finally:
            if stake.owed:
                self._settle(held, stake.usage)
            else:
                self._book.release(held.ticket)

    def _settle(self, held: Held, usage: Usage | None) -> None:
        account, most = self._account, held.ticket.claim.amount
        if usage is None or held.price is None:
            amount = None if held.price is None else most
        else:
            amount = cost(held.price, usage)
            if most is not None and amount > most:
                self._metrics.over_bound(account.provider)
                log.warning(
                    "provider_usage.exceeded",
                    provider=account.provider,
                    model=account.model,
                    reported=dollars(amount),
                    limit=dollars(most),
                )
        self._book.settle(held.ticket, amount=amount, usage=usage)
        self._metrics.booked(account.provider, account.route, account.model, amount, usage)


@dataclass(frozen=True, slots=True)
class Held:
    """A ticket with the price it will be settled at; None where that is not known."""

    ticket: Ticket
    price: Price | None
