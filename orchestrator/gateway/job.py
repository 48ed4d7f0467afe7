"""A request as the attempts need it: what is sent, what came of it, what its client has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from multidict import CIMultiDict

from cloud.engines.row import Ranking
from orchestrator.gateway.accounts.meter import Meter
from orchestrator.gateway.adapters import Use, addressed
from orchestrator.gateway.asked import Asked
from orchestrator.gateway.config import CONTINUATIONS, PoolGate
from orchestrator.gateway.continuation import (
    Capability,
    Kind,
    Plan,
    Transcript,
    Way,
    may_ask_usage,
    plan_of,
    prepared,
)
from orchestrator.gateway.dialects import Edge
from orchestrator.gateway.dialects.ranking import RankedEdge, in_words_of, wants_translation
from orchestrator.gateway.entry import Entry, Nature, Wish
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.renaming import Renaming, RenamingEdge
from orchestrator.gateway.replies import BACKEND, NODE, REQUEST_ID
from orchestrator.gateway.request import Exchange, Stage
from orchestrator.gateway.stream import CompletionJudge, StreamJudge
from policies.keys import ClientKey
from policies.routing import Route, Trouble

if TYPE_CHECKING:
    from orchestrator.gateway.accounts.charge import Charged

CONTINUATION = "X-Continuation"
"""In a request: asks for less than the pool's setting. In the answer to one: what holds for its stream."""


class Job:
    """One request on its way.

    `response` is set once there is something for the client; `transcript` once its stream is recorded, so
    that another target could go on with it; `nature` is what the target of the recorded part served then,
    `broke_at` when it last broke; `judge` judges what the first target brings, and is None after that.

    `client` is whose key it came with, None where no keys are asked for; `meter` takes what it used, and
    `charged` is what its key has held for it. `asks_usage`: its target is asked for the usage of its stream,
    which the client did not ask for. `model` is the name that the client asked for, `came` the request as it
    came, `asked` as its present backend gets it. `route` is None where requests are not looked at; `backend`
    says who has it now, and `pool` which pool, empty where that is none. `gate` is how that pool is treated,
    `use` what is counted of its adapter, None where it asks for none.
    """

    __slots__ = (
        "asked", "asks_usage", "backend", "broke_at", "came", "charged", "client", "edge", "exchange",
        "gate", "headers", "judge", "meter", "model", "nature", "outcome", "plan", "pool", "request",
        "response", "route", "transcript", "use",
    )  # fmt: skip

    def __init__(
        self, request: web.BaseRequest, exchange: Exchange, asked: Asked, client: ClientKey | None = None
    ) -> None:
        self.request = request
        self.exchange = exchange
        self.client = client
        self.meter = Meter()
        self.charged: Charged | None = None
        self.came = self.asked = asked
        self.model = asked.model
        self.edge = asked.dialect.edge(asked)
        self.route: Route | None = None
        self.backend = self.pool = ""
        self.gate: PoolGate | None = None
        self.use: Use | None = None
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.plan: Plan | None = None
        self.asks_usage = False
        self.transcript: Transcript | None = None
        self.nature: Nature | None = None
        self.broke_at = 0.0
        self.judge: StreamJudge | None = None
        self.response: web.StreamResponse | None = None
        self.outcome = Outcome.CANCELLED

    def aim(self, model: str) -> None:
        """Go to a backend that knows the model by this name, by the same as the client where it is empty."""
        if self.asked is not self.came:
            self.asked, self.edge = self.came, self.came.dialect.edge(self.came)
        if model and self.model and model != self.asked.model:
            self.asked = self.asked.named(model)
            self.edge = self._edge_of(self.asked)
        self.plan = self.judge = self.transcript = self.nature = self.gate = self.use = None

    def renamed(self, data: bytes) -> bytes:
        """What a backend says in the client's own dialect, with the model's name that the client knows."""
        return data if self.asked is self.came else self._renaming(self.asked)(data)

    def _edge_of(self, asked: Asked) -> Edge:
        """The edge of a request that goes out under another name than its client's."""
        return RenamingEdge(asked.dialect.edge(asked), self._renaming(asked))

    def _renaming(self, asked: Asked) -> Renaming:
        repeats = asked.dialect.name == "responses"
        return Renaming(self.model, asked.model if repeats else None)

    def speaks(self, ranking: Ranking | None) -> None:
        """Have a ranking asked for in the words of the backend's engine, where they are not the client's."""
        if ranking is not None and wants_translation(self.asked):
            theirs, self.asked = self.asked, in_words_of(self.asked, ranking)
            self.edge = RankedEdge(self.edge, theirs, ranking)

    def may_continue(self, continuation: str) -> None:
        """Have its stream continued where it breaks, as far as the pool's setting and its client let it."""
        if self.asked.stream:
            plan = plan_of(self.asked)
            wanted = _strictest(continuation, self.request.headers.get(CONTINUATION, "").strip().lower())
            if wanted == "on" or (wanted == "exact" and plan.kind is not Kind.INEXACT):
                self.plan = plan

    @property
    def repeatable(self) -> bool:
        """Whether it may run twice."""
        return self.asked.repeatable

    @property
    def counts(self) -> bool:
        """Whether it is work whose tokens are counted; nothing else costs any."""
        return self.asked.dialect.counts and self.request.method == hdrs.METH_POST

    @property
    def sought(self) -> bool:
        """Whether it is about something that one target has."""
        return self.asked.stored is not None

    @property
    def whole(self) -> bool:
        """Whether its client has all of its stream, or will once that is closed."""
        if self.exchange.stage is not Stage.STREAMING:
            return False
        if self.judge is not None:
            return self.judge.whole
        return self.transcript is not None and bool(self.transcript.finish)

    @property
    def wish(self) -> Wish:
        """What it needs of its next target."""
        return self.exchange.wish

    def body_for(self, entry: Entry, *, spares_usage: bool = False) -> bytes:
        """What is sent to this target; begins a transcript where its stream could be continued.

        It asks for the usage of a stream where its client does not, unless that is to be left out.
        """
        self.transcript, self.judge, self.nature = None, None, entry.nature
        capability, plan, asked = entry.capability or Capability(), self.plan, self.addressed()
        if asked.model != self.asked.model:
            self.edge = self._edge_of(asked)
        asks = self.asks_usage = not spares_usage and self.may_ask_usage(entry)
        recorded = plan is not None and plan.kind is not Kind.ENDED and capability.way is not Way.NONE
        if plan is not None and (recorded or plan.kind is Kind.AGAIN):
            self.transcript = Transcript(asked, plan, asks=asks)
        return prepared(asked, plan, capability, asks=asks)

    def addressed(self) -> Asked:
        """The request in the words of its present target."""
        return self.asked if self.gate is None else addressed(self.asked, self.wish.held, self.gate)

    def known_name(self, said: bytes) -> bytes:
        """An engine's error with the name of the adapter that clients know."""
        held = self.wish.held
        return said if held is None else said.replace(held.served_as.encode() or b"\0", held.name.encode())

    def may_ask_usage(self, entry: Entry) -> bool:
        """Whether a target is to be asked for the usage of its stream, which its client did not ask for."""
        return entry.takes_usage is not False and may_ask_usage(self.asked)

    def new_judge(self) -> StreamJudge:
        """The judge of the stream that a target begins."""
        if self.transcript is None and not self.asks_usage:
            self.judge = self.asked.dialect.judge(self.asked)
        else:
            self.judge = CompletionJudge(self.asked.choices, self.transcript, unasked=self.asks_usage)
        return self.judge

    @property
    def kind(self) -> str:
        """The class of its continuation, as metrics name it."""
        return "none" if self.plan is None else self.plan.kind.value

    def obstacle(self) -> str:
        """Why its stream cannot be continued now; empty when it can."""
        if self.plan is None:
            return "continuation is off" if self.asked.stream else "not a stream"
        if self.transcript is None:
            return self.plan.why or "its node tells no token ids"
        return self.transcript.obstacle()

    def fits(self, entry: Entry) -> bool:
        """Whether a target can bring the rest of its stream: what the first one would, as far as is known."""
        transcript = self.transcript
        if transcript is None or transcript.obstacle(entry.capability or Capability()):
            return False
        return transcript.again or (self.nature is not None and entry.nature == self.nature)

    @property
    def revision(self) -> str:
        """The revision of its adapter that can bring the rest of its stream; empty for any."""
        held, transcript = self.wish.held, self.transcript
        return "" if held is None or transcript is None or transcript.again else held.revision

    def can_move(self) -> bool:
        """Whether it can go on at another target."""
        if self.exchange.stage is Stage.STREAMING:
            return not self.obstacle()
        return self.asked.repeatable

    def can_leave(self) -> bool:
        """Whether another backend takes it while all targets of its pool are down."""
        exchange = self.exchange
        return exchange.stage is Stage.SENT and self.repeatable and Trouble.DOWN in exchange.leaves

    def seconds_left(self, entry: Entry) -> float | None:
        """How long its stream will take at this target, by the tokens that it may still bring."""
        transcript = self.transcript
        if transcript is None or self.asked.max_tokens is None or not entry.clock.gap:
            return None
        return (self.asked.max_tokens - transcript.tokens) * entry.clock.gap

    def began(self, now: float) -> float:
        """Its answer begins: the seconds since it arrived."""
        seconds = self.meter.first_s = now - self.exchange.started
        return seconds

    def told_tokens(self) -> int | None:
        """Tokens that came so far, None where nothing tells."""
        if self.transcript is not None:
            return self.transcript.tokens
        return None if self.judge is None else self.judge.tokens()

    def tokens_so_far(self) -> int:
        """Tokens that came so far: as reported, else one for each piece of its stream."""
        return self.told_tokens() or (self.meter.pieces if self.judge is None else self.judge.chunks)

    def answer_headers(self, headers: CIMultiDict[str], entry: Entry) -> CIMultiDict[str]:
        """The target's headers with those that say which request and which node this is."""
        self.sign(headers)
        headers[NODE] = entry.spec.id
        if self.plan is not None:
            headers[CONTINUATION] = self._promise()
        return headers

    def sign(self, headers: CIMultiDict[str]) -> None:
        """Say in an answer's headers which request this is, and who answers it where that is a question."""
        headers[REQUEST_ID] = self.exchange.id
        if self.route is not None:
            headers[BACKEND] = self.backend

    def interrupted(self, failure: Failure, detail: str) -> bytes:
        """The last event of its stream when the rest will not come."""
        return self.edge.interrupted(
            request_id=self.exchange.id, failure=failure, detail=detail, tokens=self.told_tokens()
        )

    def seam(self) -> bytes:
        """A comment in its stream where another target goes on (clients of event streams skip comments)."""
        inexact = self.plan is not None and self.plan.inexact
        return b": continued inexact\n\n" if inexact else b": continued\n\n"

    def _promise(self) -> str:
        if self.transcript is None or self.plan is None or self.plan.kind in (Kind.ENDED, Kind.AGAIN):
            return "no"
        return "inexact" if self.plan.inexact else "exact"


def _strictest(setting: str, header: str) -> str:
    """The stricter of the pool's setting and what the client asks for; unknown words ask for nothing."""
    if header not in CONTINUATIONS:
        return setting
    return min(setting, header, key=CONTINUATIONS.index)
