"""Limits of keys: what any minute holds, what averages come to, and when the refused may come again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.client_limits import (
    LONGEST_WAIT,
    MOST_DEBT,
    SPAN,
    WINDOW,
    Booking,
    History,
    Limit,
    Window,
    full,
    give_back,
    over_budget,
    refusal,
    settle,
    take,
)
from policies.keys import KeyLimits
from policies.spend import usd

START = 1_000_000.0


@dataclass
class Key:
    """A key whose requests are decided one after the other, and what was booked for them."""

    limits: KeyLimits
    window: Window = field(default_factory=Window)
    history: History = field(default_factory=History)
    in_flight: int = 0

    def ask(self, now: float, tokens: int = 0) -> Booking | None:
        if full(self.limits, self.window, tokens=tokens, in_flight=self.in_flight, now=now) is not None:
            return None
        self.in_flight += 1
        return take(self.limits, self.window, tokens=tokens, now=now)

    def end(self, booked: Booking, now: float, tokens: int) -> None:
        self.in_flight -= 1
        settle(self.limits, self.window, booked, tokens=tokens, now=now)

    def wait(self, limit: Limit, now: float, tokens: int = 0) -> float:
        refused = refusal("a", self.limits, limit, self.window, tokens=tokens, now=now, history=self.history)
        assert refused.limit is limit
        assert f"again in {math.ceil(refused.retry_after)} s" in refused.text
        return refused.retry_after


def per_minute(requests: int) -> Key:
    return Key(KeyLimits(requests_per_minute=requests))


def tokens_a_minute(tokens: int) -> Key:
    return Key(KeyLimits(tokens_per_minute=tokens))


def booked_tokens(window: Window) -> int:
    return sum(tokens for _, _, tokens in window)


moments = st.lists(st.floats(0, 300), min_size=1, max_size=150).map(sorted)


class TestRequests:
    @given(moments, st.integers(1, 20))
    def test_no_sixty_seconds_hold_more_than_the_limit(self, at: Sequence[float], limit: int) -> None:
        key = per_minute(limit)
        passed = [START + t for t in at if key.ask(START + t)]
        for first in passed:
            assert sum(first <= each < first + WINDOW for each in passed) <= limit

    @given(moments, st.integers(1, 20))
    def test_one_is_refused_only_when_a_span_of_the_counters_is_full(
        self, at: Sequence[float], limit: int
    ) -> None:
        key, passed = per_minute(limit), []
        for now in (START + t for t in at):
            if key.ask(now):
                passed.append(now)
            else:
                assert sum(int(now) - SPAN < int(each) <= int(now) for each in passed) == limit

    def test_who_waited_for_a_turn_counts_what_came_meanwhile(self) -> None:
        limits, window = KeyLimits(requests_per_minute=2), Window([(int(START) + 2, 2, 0)])
        assert full(limits, window, tokens=0, in_flight=0, now=START) is Limit.REQUESTS

    def test_all_of_a_minute_may_come_at_once(self) -> None:
        key = per_minute(600)
        assert sum(key.ask(START + 0.9) is not None for _ in range(700)) == 600
        assert key.ask(START + 60.99) is None
        assert key.ask(START + 61) is not None

    def test_many_clients_who_never_rest_get_the_limit_and_no_more(self) -> None:
        key = per_minute(600)
        passed = sum(key.ask(START + tick / 20) is not None for tick in range(20 * 600))
        assert 5900 <= passed <= 6000

    def test_what_was_given_back_is_free_at_once(self) -> None:
        key = per_minute(1)
        booked = key.ask(START)
        assert booked is not None
        assert key.ask(START + 1) is None
        assert give_back(key.window, booked, now=START + 1)
        assert key.ask(START + 1) is not None

    def test_what_counts_no_more_is_not_given_back(self) -> None:
        key = per_minute(1)
        booked = key.ask(START)
        assert booked is not None
        assert give_back(key.window, booked, now=START + 61) == []
        assert give_back(key.window, booked, now=START + 60) == [Booking(second=int(START), requests=-1)]


class TestTokens:
    @given(
        st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000), st.floats(0, 200)), max_size=80),
        st.integers(500, 2000),
    )
    def test_every_token_is_booked_once(self, asks: Sequence[tuple[int, int, float]], limit: int) -> None:
        """Estimates may be far off in either direction, and answers take longer than the minute."""
        key, used, now = tokens_a_minute(limit), 0, START
        open_: list[tuple[float, Booking, int]] = []
        for estimate, tokens, seconds in asks:
            now += 1.0
            for end in sorted(open_, key=lambda each: each[0]):
                if end[0] <= now:
                    key.end(end[1], end[0], end[2])
                    open_.remove(end)
            if booked := key.ask(now, estimate):
                open_.append((now + seconds, booked, tokens))
                used += tokens
        for end in sorted(open_, key=lambda each: each[0]):
            key.end(end[1], end[0], end[2])
        assert booked_tokens(key.window) == used

    @settings(max_examples=20)
    @given(st.lists(st.integers(0, 5000), min_size=1, max_size=40), st.integers(100, 2000))
    def test_debts_fill_minutes_and_do_not_overfill_them(self, used: Sequence[int], limit: int) -> None:
        key = tokens_a_minute(limit)
        for n, tokens in enumerate(used):
            key.end(Booking(second=int(START) + n, requests=1), START + n, tokens)
        ends = [second for second, _, _ in key.window]
        for end in range(int(START), max(ends, default=0) + WINDOW):
            assert key.window.tokens(end) <= limit

    @pytest.mark.parametrize(
        ("most", "answers", "seconds", "least"),
        [
            (4096, (10,), 3.0, 0.9),  # clients that ask for far more than they get
            (None, (5000,), 3.0, 0.9),  # or do not say
            (None, (10, 990), 20.0, 0.9),  # no two alike
            (4096, (10, 990), 150.0, 0.9),  # longer than the minute
            (None, (20_000,), 5.0, 0.9),  # one is twice a minute's
            (None, (*(1,) * 50, *(4000,) * 50), 30.0, 0.8),  # what was learned is wrong, and held for long
        ],
    )
    def test_the_average_holds_however_bad_the_estimates_are(
        self, most: int | None, answers: tuple[int, ...], seconds: float, least: float
    ) -> None:
        key, used, asked, hours = tokens_a_minute(10_000), 0, 0, 2
        open_: list[tuple[float, Booking, int]] = []
        for tick in range(hours * 3600):
            now = START + tick
            while open_ and open_[0][0] <= now:
                ends, booked, tokens = open_.pop(0)
                key.end(booked, ends, tokens)
                key.history.learn(0, prompt=0, output=tokens, choices=1, seconds=seconds)
                used += tokens
            for _ in range(60):
                guess = key.history.estimate(0, most=most, choices=1)
                booked = key.ask(now, guess) if len(open_) < 500 else None
                if booked is None:
                    break
                open_.append((now + seconds, booked, answers[asked % len(answers)]))
                asked += 1
            key.window.forget(now)
        assert least * 10_000 <= used / (hours * 60) <= 1.1 * 10_000

    def test_a_request_larger_than_a_minute_waits_for_an_empty_one(self) -> None:
        key = tokens_a_minute(1000)
        assert key.ask(START, 1) is not None
        assert key.ask(START + 1, 5000) is None
        assert key.ask(START + 61, 5000) is not None
        assert key.ask(START + 62, 1) is None

    def test_an_answer_beyond_all_measure_closes_the_key_for_an_hour_at_most(self) -> None:
        key = tokens_a_minute(10)
        booked = key.ask(START, 1)
        assert booked is not None
        key.end(booked, START, 10**9)
        assert key.ask(START + (MOST_DEBT - 1) * SPAN, 1) is None
        assert key.ask(START + (MOST_DEBT + 1) * SPAN, 1) is not None

    def test_an_answer_more_of_a_key_deep_in_debt_is_booked_by_few_looks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, looks = tokens_a_minute(1000), 0
        peak = Window.peak

        def counted(window: Window, at: int, now: float) -> int:
            nonlocal looks
            looks += 1
            return peak(window, at, now)

        key.end(Booking(second=int(START), requests=1), START, 100_000)
        monkeypatch.setattr(Window, "peak", counted)
        key.end(Booking(second=int(START), requests=1), START, 500)
        assert looks <= 20
        assert sum(tokens for _, _, tokens in key.window) == 100_500

    def test_without_a_limit_of_tokens_none_are_booked(self) -> None:
        key = per_minute(5)
        booked = key.ask(START, 7000)
        assert booked is not None
        key.end(booked, START + 1, 9000)
        assert booked_tokens(key.window) == 0


class TestAgain:
    @given(moments, st.integers(1, 20))
    def test_who_comes_when_told_is_let_in(self, at: Sequence[float], limit: int) -> None:
        key = per_minute(limit)
        for now in (START + t for t in at):
            if key.ask(now) is None:
                wait = per_minute_wait(key, now)
                assert 0 < wait <= LONGEST_WAIT
                later = Key(key.limits, Window(key.window))
                assert wait == LONGEST_WAIT or later.ask(now + wait) is not None
                assert wait <= 1 or later.ask(math.ceil(now + wait) - 1.001) is None

    def test_the_refused_are_told_to_come_one_after_the_other(self) -> None:
        key = per_minute(60)
        for second in range(60):
            assert key.ask(START + second) is not None
        waits = [key.wait(Limit.REQUESTS, START + 59.5) for _ in range(50)]
        assert waits == [1.5 + n for n in range(50)]

    def test_more_than_a_minute_has_room_for_come_a_minute_later(self) -> None:
        key = per_minute(5)
        for _ in range(5):
            key.ask(START)
        waits = [key.wait(Limit.REQUESTS, START + 30) for _ in range(1000)]
        assert min(waits) == 31
        assert max(waits) <= LONGEST_WAIT

    def test_those_whose_time_has_come_are_ahead_of_nobody(self) -> None:
        history = History()
        history.comes_again(START + 5)
        assert (history.waiting(START + 4), history.waiting(START + 5)) == (1, 0)

    def test_tokens_are_waited_for_by_their_number(self) -> None:
        key = tokens_a_minute(1000)
        for second in range(10):
            assert key.ask(START + second * 6, 100) is not None
        assert key.wait(Limit.TOKENS, START + 59, 100) == 2
        assert key.wait(Limit.TOKENS, START + 59, 300) == 2 + 6 * 5  # 600 with the one before it

    def test_places_in_flight_come_free_as_requests_of_the_key_end(self) -> None:
        key = Key(KeyLimits(in_flight=4))
        for _ in range(50):
            key.history.learn(100, prompt=25, output=10, choices=1, seconds=20.0)
        waits = [key.wait(Limit.IN_FLIGHT, START) for _ in range(100)]
        assert waits[:3] == pytest.approx([5.0, 10.0, 15.0])
        assert max(waits) == LONGEST_WAIT

    def test_nobody_is_told_to_come_at_once(self) -> None:
        key = Key(KeyLimits(in_flight=1000))
        assert key.wait(Limit.IN_FLIGHT, START) >= 1

    def test_dollars_come_back_at_midnight(self) -> None:
        limits = KeyLimits(usd_per_day=usd("5"))
        refused = over_budget("a", limits, "all is spent", never=False, now=1_796_040_000.0 + 3600)
        assert refused.retry_after == 11 * 3600
        assert refused.text == (
            "key a may spend $5 a day: all is spent; again at midnight UTC, in 11 h 0 min"
        )

    def test_what_is_dearer_than_a_day_does_not_fit_tomorrow_either(self) -> None:
        limits = KeyLimits(usd_per_day=usd("5"))
        refused = over_budget("a", limits, "it may cost $6", never=True, now=0.0)
        assert refused.retry_after is None
        assert refused.text == (
            "key a may spend $5 a day: it may cost $6, more than any day has; a shorter prompt or a lower "
            "limit of tokens may fit"
        )


class TestInFlight:
    def test_so_many_and_no_more(self) -> None:
        key = Key(KeyLimits(in_flight=2))
        first = key.ask(START)
        assert first is not None
        assert key.ask(START) is not None
        assert key.ask(START) is None
        key.end(first, START, 0)
        assert key.ask(START) is not None


class TestHistory:
    def test_the_first_request_is_taken_for_its_bytes_and_its_limit(self) -> None:
        history = History()
        assert history.estimate(400, most=50, choices=2) == 200
        assert history.estimate(400, most=None, choices=1) == 612
        assert history.estimate(400, most=None, choices=0) == 100

    def test_later_ones_for_what_those_before_came_to(self) -> None:
        history = History()
        for _ in range(200):
            history.learn(1000, prompt=500, output=20, choices=2, seconds=1.0)
        assert history.estimate(1000, most=None, choices=1) == pytest.approx(510, abs=1)
        assert history.estimate(1000, most=4096, choices=1) == pytest.approx(510, abs=1)
        assert history.estimate(1000, most=4, choices=1) == pytest.approx(504, abs=1)

    @given(st.lists(st.integers(0, 10**6), min_size=1))
    def test_the_mean_stays_within_what_was_seen(self, outputs: Sequence[int]) -> None:
        history = History()
        for output in outputs:
            history.learn(0, prompt=0, output=output, choices=1, seconds=1.0)
        mean = history.estimate(0, most=None, choices=1)
        assert min(outputs) <= mean <= max(outputs) + 1

    def test_the_window_forgets_what_no_minute_touches(self) -> None:
        window = Window([(100, 1, 1), (101, 1, 1), (900, 0, 5)])
        window.forget(161.5)
        assert list(window) == [(101, 1, 1), (900, 0, 5)]


def per_minute_wait(key: Key, now: float) -> float:
    """What the only refused client is told."""
    return Key(key.limits, key.window).wait(Limit.REQUESTS, now)
