"""Exports of providers' usage: the documented forms are read, and what is none is told with its place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.costs.exports import ANTHROPIC, OPENAI, Unreadable, read_export

SAMPLES = Path(__file__).parents[3] / "examples" / "usage"
DAY = datetime(2026, 11, 16, tzinfo=UTC)
EPOCH = int(DAY.timestamp())

OPENAI_CSV = (
    "start_time,end_time,start_time_iso,num_model_requests,model,batch,input_tokens,output_tokens,"
    "input_cached_tokens\n"
)
ANTHROPIC_CSV = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count\n"
)


def openai_bucket(start: int = EPOCH, seconds: int = 3600, **result: Any) -> dict[str, Any]:
    results = [{"object": "organization.usage.completions.result", **result}] if result else []
    return {"object": "bucket", "start_time": start, "end_time": start + seconds, "results": results}


def page(*buckets: dict[str, Any], **more: Any) -> str:
    return json.dumps({"object": "page", "data": list(buckets), **more})


@pytest.mark.parametrize(
    ("name", "provider", "days", "models", "prompt", "output"),
    [
        ("openai.csv", OPENAI, 7, {"gpt-4.1", "gpt-4.1-mini"}, 260_129_998, 65_181_999),
        ("openai.json", OPENAI, 1, {"gpt-4.1-mini"}, 30_399_992, 7_599_992),
        ("anthropic.csv", ANTHROPIC, 7, {"claude-haiku-4-5", "claude-sonnet-4-5"}, 129_167_997, 19_435_000),
        ("anthropic.json", ANTHROPIC, 3, {"claude-sonnet-4-5"}, 42_240_000, 4_640_000),
    ],
)
def test_the_samples(name: str, provider: str, days: int, models: set[str], prompt: int, output: int) -> None:
    found = read_export((SAMPLES / name).read_text(encoding="utf-8"))
    assert (found.provider, found.begin, found.end) == (provider, DAY, DAY + timedelta(days=days))
    assert {row.model for row in found.used if row.tokens} == models
    assert sum(row.tokens - row.output for row in found.used) == prompt
    assert sum(row.output for row in found.used) == output


def test_openai_counts_what_was_cached_into_the_prompt() -> None:
    text = page(
        openai_bucket(
            input_tokens=1000, output_tokens=500, input_cached_tokens=800, input_cache_write_tokens=50,
            num_model_requests=5, model="m",
        )
    )  # fmt: skip
    row = next(row for row in read_export(text).used if row.tokens)
    assert (row.fresh, row.cached, row.written, row.output, row.requests) == (150, 800, 50, 500, 5)


def test_embeddings_have_no_answer() -> None:
    bucket = openai_bucket(input_tokens=16, num_model_requests=2, model="text-embedding-3-small")
    row = next(row for row in read_export(page(bucket)).used if row.tokens)
    assert (row.fresh, row.output) == (16, 0)


def test_anthropic_counts_what_was_cached_beside_the_rest() -> None:
    text = ANTHROPIC_CSV + "2026-11-16,claude,key,Default,batch,≤ 200k,100,20,3,400,50,0\n"
    (row,) = read_export(text).used
    assert (row.fresh, row.written, row.written_1h, row.cached, row.output) == (100, 20, 3, 400, 50)
    assert row.batch


def test_a_bucket_in_which_nothing_happened_counts_to_the_time() -> None:
    text = page(openai_bucket(input_tokens=1, output_tokens=1), openai_bucket(EPOCH + 3600))
    assert read_export(text).end == DAY + timedelta(hours=2)
    row = f"{EPOCH},{EPOCH + 86400},x,1,m,false,1,1,0\n{EPOCH + 86400},{EPOCH + 172800},x,,,,,,\n"
    assert read_export(OPENAI_CSV + row).end == DAY + timedelta(days=2)


def test_anthropics_lines_are_as_wide_as_they_are_apart() -> None:
    def width(*times: str) -> timedelta:
        lines = (f"{time},claude,k,w,standard,c,1,0,0,0,1,0\n" for time in times)
        row = read_export(ANTHROPIC_CSV + "".join(lines)).used[0]
        return row.end - row.begin

    assert width("2026-11-16") == timedelta(days=1)
    assert width("2026-11-16", "2026-11-19") == timedelta(days=1)  # nothing was used in between
    assert width("2026-11-16T10:00:00Z", "2026-11-16T12:00:00Z", "2026-11-16T13:00Z") == timedelta(hours=1)


def test_pages_may_stand_in_a_list_and_the_last_one_says_whether_more_follow() -> None:
    first = json.loads(page(openai_bucket(input_tokens=5, output_tokens=1), has_more=True))
    last = json.loads(page(openai_bucket(EPOCH + 3600, input_tokens=6, output_tokens=1), has_more=False))
    both = read_export(json.dumps([first, last]))
    assert (sum(row.fresh for row in both.used), both.partial) == (11, False)
    assert read_export(json.dumps(first)).partial
    assert not read_export(json.dumps(first["data"])).partial  # the buckets of all pages, as people keep them


def test_a_byte_order_mark_tabs_and_spaces_are_no_hindrance() -> None:
    text = "\ufeff" + OPENAI_CSV.replace(",", "\t") + f"{EPOCH}\t{EPOCH + 86400}\tx\t1\tm\tTRUE\t10\t2\t4\n"
    (row,) = read_export(text).used
    assert (row.fresh, row.cached, row.batch) == (6, 4, True)
    assert read_export(OPENAI_CSV.replace(",model", ", model ") + f"{EPOCH},{EPOCH + 9},x,1,m,,1,1,0").used


def test_a_spreadsheet_may_have_written_it_with_semicolons() -> None:
    plain = OPENAI_CSV + f'{EPOCH},{EPOCH + 86400},x,1,"m;n",false,10,2,4\n'
    other = OPENAI_CSV.replace(",", ";") + f'{EPOCH};{EPOCH + 86400};x;1;"m;n";false;10;2;4\n'
    assert read_export(other) == read_export(plain)


def test_a_quoted_field_may_hold_commas() -> None:
    text = ANTHROPIC_CSV + '2026-11-16,claude,"a, b",Default,standard,≤ 200k,7,0,0,0,1,0\n'
    assert read_export(text).used[0].fresh == 7


def test_a_model_that_is_not_told_is_empty() -> None:
    found = read_export(page(openai_bucket(input_tokens=1, output_tokens=1, model=None)))
    assert {row.model for row in found.used} == {""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("\ufeff  \n", "it is empty"),
        ("a,b\n1,2\n", "its first line is no header that is known"),
        ("{", "it begins like JSON and is none"),
        ("[1]", "a list of something else"),
        ("[" * 100_000, "it begins like JSON and is none"),
        ('{"x": 1}', "it has no list of objects as data"),
        ('{"data": [1]}', "it has no list of objects as data"),
        ('{"data": [{"results": []}]}', "its buckets have neither start_time"),
        ('{"data": []}', "its buckets have neither start_time"),
        (page({"start_time": EPOCH, "end_time": EPOCH + 1}), "it has no list of objects as results"),
        (page({"start_time": "x", "end_time": 1, "results": []}), "start_time is 'x', which is no time"),
        (page({"start_time": 1e300, "end_time": 1, "results": []}), "which is no time in seconds"),
        (page(openai_bucket(input_tokens=1, input_cached_tokens=2)), "input_tokens is 1, and 2 of them"),
        (page(openai_bucket(input_tokens=-1)), "input_tokens is '-1', which is no count"),
        (page(openai_bucket(input_tokens=1.5)), "input_tokens is '1.5', which is no count"),
        (page(openai_bucket(input_tokens=True)), "input_tokens is 'True', which is no count"),
        (page(openai_bucket(input_tokens=10**16)), "which is no count"),
        (page(openai_bucket(input_tokens=0)), "nothing was used in it"),
        (page(openai_bucket(seconds=0, input_tokens=1)), "ends before it begins"),
        (OPENAI_CSV, "nothing was used in it"),
        ('"start_time"x,model\n1,2\n', "line 1: ',' expected after"),
        (OPENAI_CSV + f"{EPOCH},{EPOCH + 1},x,1,m,false,many,1,0\n", "line 2: input_tokens is 'many'"),
        (OPENAI_CSV + f'{EPOCH},{EPOCH + 1},"x', "unexpected end of data"),
        (ANTHROPIC_CSV + "16.11.2026,claude,k,w,s,c,1,0,0,0,1,0\n", "line 2: usage_date_utc is '16.11.2026'"),
        ('{"data": [{"starting_at": "2026-11-16T00:00:00Z", "ending_at": "2026-11-17T00:00:00Z", '
         '"results": [{"cache_creation": 3}]}]}', "cache_creation is no object"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_told_as_that(text: str, said: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_export(text)
    assert said in str(caught.value)
