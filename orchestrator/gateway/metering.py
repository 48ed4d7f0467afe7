"""Counts what every request used, once it is over: for its key and model, in metrics and the usage file.

The engine's own count holds, else that of the token ids which it sent. Where neither is there, as of an
answer that its client left, it is an estimate, and marked as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson
from aiohttp import web

from cloud.providers.usage import of_openai
from orchestrator.gateway.accounts.estimate import BYTES_OF_A_TOKEN, answer_tokens, prompt_tokens
from orchestrator.gateway.accounts.usage_book import UsageBook
from orchestrator.gateway.accounts.usage_metrics import UsageMetrics
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import FAILED, Outcome
from orchestrator.gateway.request import BEGUN, Stage
from policies.spend import Usage

_NOTHING = Usage(0, 0, 0, 0)


class Metering:
    """One for the process. `pools` are those that it serves."""

    def __init__(
        self,
        book: UsageBook,
        metrics: UsageMetrics,
        pools: Iterable[PoolGate],
        *,
        routed: bool,
        now: Callable[[], float],
    ) -> None:
        self._book = book
        self._metrics = metrics
        self._served = {gate.name: gate.served for gate in pools}
        self._routed = routed
        self._now = now

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A request is over. Completes its meter, and counts it where it was work that a backend was asked
        for.
        """
        meter = job.meter
        if not (job.counts and meter.backend) or outcome is Outcome.BAD_REQUEST:
            return
        meter.usage, meter.estimated = used(job, outcome)
        usage = meter.usage or _NOTHING
        if job.use is not None:
            job.use.tokens += usage.prompt + usage.output
        seconds = self._now() - job.exchange.started
        key = "" if job.client is None else job.client.name
        route = job.route.name if self._routed and job.route is not None else ""
        self._book.add(
            key,
            route,
            meter.backend,
            meter.model,
            [
                1,
                outcome in FAILED,
                meter.estimated,
                usage.fresh,
                usage.cached,
                usage.cache_write + usage.cache_write_1h,
                usage.output,
                meter.first_s or 0.0,
                0.0 if meter.first_s is None else seconds,
            ],
        )
        name = route or meter.model or self._served.get(job.pool, "")
        self._metrics.used(job.pool, meter.backend, key, name, usage, estimated=meter.estimated)
        if job.transcript is not None:
            self._metrics.wasted(job.pool, "output", job.transcript.dropped)
        if meter.backend.startswith("pool") and job.asked.stream and meter.first_s is not None:
            gaps = usage.output - 1
            gap = (seconds - meter.first_s) / gaps if gaps > 0 and outcome is Outcome.OK else None
            self._metrics.streamed(job.pool, name, meter.first_s, gap)


def used(job: Job, outcome: Outcome) -> tuple[Usage | None, bool]:
    """The tokens of a request that is over, None where its client has nothing of an answer; and whether they
    are an estimate.

    Of an answer that its client left before it began, the prompt counts where a backend had it.
    """
    stage = job.exchange.stage
    left = outcome is Outcome.CANCELLED and stage is Stage.SENT
    if outcome is not Outcome.OK and stage not in BEGUN and not left:
        return None, False
    told = _told(job)
    if told is not None or not job.asked.dialect.json:
        return told, False
    return _estimate(job), True


def _told(job: Job) -> Usage | None:
    """What was used of a whole answer, as its engine reported it, or by the token ids that it sent."""
    if job.meter.usage is not None:
        return job.meter.usage
    judge, transcript = job.judge, job.transcript
    for recorder in (judge, transcript):
        if recorder is not None and (usage := of_openai(recorder.usage)) is not None:
            return usage
    if transcript is None or not transcript.told:
        return None
    return Usage(len(transcript.prompt or ()), 0, 0, transcript.tokens)


def _estimate(job: Job) -> Usage:
    """What was used so far, by what was asked and what passed."""
    transcript, answer = job.transcript, job.response
    if transcript is not None and transcript.prompt is not None:
        prompt = len(transcript.prompt)
    else:
        prompt = prompt_tokens(job.asked.inner or _loaded(job.asked.raw))
    if isinstance(answer, web.Response):
        return Usage(prompt, 0, 0, answer_tokens(_loaded(answer.body)))
    output = job.tokens_so_far()
    if not output and transcript is not None:
        output = transcript.length // BYTES_OF_A_TOKEN
    return Usage(prompt, 0, 0, output)


def _loaded(body: object) -> dict[str, Any]:
    """A body as a JSON object, empty where it is none."""
    try:
        found = orjson.loads(body) if isinstance(body, bytes) else None
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {}
