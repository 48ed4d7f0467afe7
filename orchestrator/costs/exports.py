"""What a provider says was used: exports of OpenAI and Anthropic, as CSV and as JSON, read into one shape.

Told apart by what is in them:

* OpenAI, CSV of the usage page: `start_time`, `end_time` (seconds since the epoch), `model`,
  `num_model_requests`, `input_tokens`, `output_tokens`, `input_cached_tokens`, `batch`.
* OpenAI, JSON of `GET /v1/organization/usage/completions` (or `/embeddings`): a page whose `data` are buckets
  with `start_time`, `end_time` and `results` of the same fields. `input_tokens` counts all of the prompt,
  `input_cached_tokens` and `input_cache_write_tokens` in it.
* Anthropic, CSV of the Console's usage page: `usage_date_utc`, `model_version`, `usage_type`,
  `usage_input_tokens_no_cache`, `..._cache_write_5m`, `..._cache_write_1h`, `..._cache_read`,
  `usage_output_tokens`.
* Anthropic, JSON of `GET /v1/organizations/usage_report/messages`: `data` with `starting_at`, `ending_at`
  (RFC 3339) and `results` of `model`, `service_tier`, `uncached_input_tokens`, `cache_read_input_tokens`,
  `cache_creation` (`ephemeral_5m_input_tokens`, `ephemeral_1h_input_tokens`) and `output_tokens`.

Several pages may stand in one list. Names of keys, projects and users are not read. The formats are those of
the providers' documentation in autumn 2026; columns that are not named here are passed over.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import pairwise
from typing import Any, Final

OPENAI: Final = "openai"
ANTHROPIC: Final = "anthropic"

_DAY = timedelta(days=1)
_MOST = 10**15
"""More tokens than anybody used in a bucket: what says so is no export."""


class Unreadable(Exception):
    """The text is no export that is known, or a damaged one; the message says what is wrong where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What one model was used for in a span of time. `model` is empty where the export does not tell it, and
    where nothing was used."""

    begin: datetime
    end: datetime
    model: str = ""
    requests: int = 0
    fresh: int = 0
    cached: int = 0
    written: int = 0
    written_1h: int = 0
    output: int = 0
    batch: bool = False

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return self.fresh + self.cached + self.written + self.written_1h + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a provider's file holds: at least one row. `partial`: it says itself that more pages follow."""

    provider: str
    used: tuple[Used, ...]
    partial: bool = False

    @property
    def begin(self) -> datetime:
        """The begin of its first bucket."""
        return min(row.begin for row in self.used)

    @property
    def end(self) -> datetime:
        """The end of its last one."""
        return max(row.end for row in self.used)


def read_export(text: str) -> Export:
    """The export in a text. Raises Unreadable."""
    text = text.removeprefix("\ufeff").strip()
    if not text:
        raise Unreadable("it is empty")
    found = _read_json(text) if text[0] in "{[" else _read_csv(text)
    if not any(row.tokens for row in found.used):
        raise Unreadable("nothing was used in it")
    if any(row.end <= row.begin for row in found.used):
        raise Unreadable("a span of time in it ends before it begins")
    return found


Row = Mapping[str, Any]
Reader = Callable[[Row], Iterator[Used]]


# -- JSON --------------------------------------------------------------------------------------------


def _read_json(text: str) -> Export:
    try:
        pages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it begins like JSON and is none: {error}") from error
    buckets: list[Row] = []
    partial = False
    for page in pages if isinstance(pages, list) else [pages]:
        if not isinstance(page, dict):
            raise Unreadable("it is a list of something else than pages or buckets of usage")
        buckets += [page] if "results" in page else _objects(page, "data")
        partial = bool(page.get("has_more"))  # of the last page: the others are followed by it
    for name, provider, read in (
        ("starting_at", ANTHROPIC, _anthropic_bucket),
        ("start_time", OPENAI, _openai_bucket),
    ):
        if any(name in bucket for bucket in buckets):
            used = tuple(row for bucket in buckets for row in read(bucket))
            return Export(provider=provider, used=used, partial=partial)
    raise Unreadable("its buckets have neither start_time (OpenAI) nor starting_at (Anthropic)")


def _openai_bucket(bucket: Row) -> Iterator[Used]:
    span = Used(begin=_epoch(bucket, "start_time"), end=_epoch(bucket, "end_time"))
    yield span
    for result in _objects(bucket, "results"):
        yield _openai(span, result)


def _anthropic_bucket(bucket: Row) -> Iterator[Used]:
    span = Used(begin=_instant(bucket, "starting_at"), end=_instant(bucket, "ending_at"))
    yield span
    for result in _objects(bucket, "results"):
        creation = result.get("cache_creation") or {}
        if not isinstance(creation, dict):
            raise Unreadable("cache_creation is no object")
        yield replace(
            span,
            model=_text(result, "model"),
            fresh=_count(result, "uncached_input_tokens"),
            cached=_count(result, "cache_read_input_tokens"),
            written=_count(creation, "ephemeral_5m_input_tokens"),
            written_1h=_count(creation, "ephemeral_1h_input_tokens"),
            output=_count(result, "output_tokens"),
            batch=_text(result, "service_tier") == "batch",
        )


def _objects(of: Row, name: str) -> list[Row]:
    found = of.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Unreadable(f"it has no list of objects as {name}")
    return found


# -- CSV ---------------------------------------------------------------------------------------------


def _read_csv(text: str) -> Export:
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)  # a spreadsheet writes back what its country has
    rows = csv.DictReader(StringIO(text), delimiter=delimiter, strict=True)
    try:
        rows.fieldnames = names = [name.strip() for name in rows.fieldnames or ()]
    except csv.Error as error:
        raise Unreadable(f"line 1: {error}") from error
    if {"usage_date_utc", "usage_output_tokens"} <= set(names):
        return Export(provider=ANTHROPIC, used=_with_ends(_rows(rows, _anthropic_row)))
    if {"start_time", "input_tokens"} <= set(names):
        return Export(provider=OPENAI, used=_rows(rows, _openai_row))
    raise Unreadable(
        "its first line is no header that is known: OpenAI's has start_time and input_tokens, Anthropic's "
        "usage_date_utc and usage_output_tokens"
    )


def _rows(rows: csv.DictReader[str], read: Reader) -> tuple[Used, ...]:
    try:
        return tuple(used for row in rows for used in read(row))
    except (csv.Error, Unreadable) as error:
        raise Unreadable(f"line {rows.line_num}: {error}") from error


def _openai_row(row: Row) -> Iterator[Used]:
    yield _openai(Used(begin=_epoch(row, "start_time"), end=_epoch(row, "end_time")), row)


def _openai(span: Used, row: Row) -> Used:
    """A result of the API, or a line of the usage page: both have the same names."""
    cached, written = _count(row, "input_cached_tokens"), _count(row, "input_cache_write_tokens")
    prompt = _count(row, "input_tokens")
    if cached + written > prompt:
        raise Unreadable(f"input_tokens is {prompt}, and {cached + written} of them are said to be cached")
    return replace(
        span,
        model=_text(row, "model"),
        requests=_count(row, "num_model_requests"),
        fresh=prompt - cached - written,
        cached=cached,
        written=written,
        output=_count(row, "output_tokens"),
        batch=_text(row, "batch").lower() == "true",
    )


def _anthropic_row(row: Row) -> Iterator[Used]:
    begin = _instant(row, "usage_date_utc")
    yield Used(
        begin=begin,
        end=begin,
        model=_text(row, "model_version"),
        fresh=_count(row, "usage_input_tokens_no_cache"),
        cached=_count(row, "usage_input_tokens_cache_read"),
        written=_count(row, "usage_input_tokens_cache_write_5m")
        + _count(row, "usage_input_tokens_cache_write"),
        written_1h=_count(row, "usage_input_tokens_cache_write_1h"),
        output=_count(row, "usage_output_tokens"),
        batch=_text(row, "usage_type") == "batch",
    )


def _with_ends(used: tuple[Used, ...]) -> tuple[Used, ...]:
    """Rows that tell only when they begin: they are as wide as the least time between two of them, a day at
    most."""
    begins = sorted({row.begin for row in used})
    width = min((b - a for a, b in pairwise(begins)), default=_DAY)
    return tuple(replace(row, end=row.begin + min(width, _DAY)) for row in used)


# -- fields ------------------------------------------------------------------------------------------


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()


def _count(row: Row, name: str) -> int:
    """Tokens or requests; nothing where the field is missing or empty."""
    text = _text(row, name)
    try:
        count = int(text or "0")
    except ValueError:
        count = -1
    if not 0 <= count <= _MOST:
        raise Unreadable(f"{name} is {text[:40]!r}, which is no count")
    return count


def _epoch(row: Row, name: str) -> datetime:
    text = _text(row, name)
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise Unreadable(f"{name} is {text[:40]!r}, which is no time in seconds") from None


def _instant(row: Row, name: str) -> datetime:
    """A date, or an instant in RFC 3339; UTC where no zone is said."""
    text = _text(row, name)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Unreadable(f"{name} is {text[:40]!r}, which is no date") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
