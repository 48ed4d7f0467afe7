"""What the tests of AWS's notice sources share."""

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


_WARNING = json.dumps(
    {
        "id": "1",
        "source": "aws.ec2",
        "detail-type": "EC2 Spot Instance Interruption Warning",
        "time": "2026-01-01T00:00:00Z",
        "detail": {"instance-id": "i-1234567890abcdef0", "instance-action": "terminate"},
    }
)


@pytest.fixture(scope="session")
def malformed() -> list[tuple[str, str]]:
    """(what is wrong, body) of bodies from which no notice can be read; the large ones are made here."""
    listed = [(entry["why"], entry["body"]) for entry in _lines("malformed.jsonl")]
    made = [
        ("half a megabyte of one letter", "x" * 500_000),
        ("a sound event after too much white space", " " * 300_000 + _WARNING),
        ("lists nested without end", "[" * 200_000),
        ("objects nested without end", '{"a":' * 50_000),
        ("strings in strings", _wrapped(_WARNING, 4)),
        ("a number of a hundred thousand digits", "9" * 100_000),
        (
            "an instance id that is nested",
            _WARNING.replace('"i-1234567890abcdef0"', '{"a":' * 900 + "1" + "}" * 900),
        ),
        (
            "an instance id of a hundred kilobytes",
            _WARNING.replace("i-1234567890abcdef0", "i-" + "a" * 100_000),
        ),
        ("a lone surrogate", _WARNING.replace("terminate", "\ud800")),
        ("zero bytes", "\0" * 1000),
        *((f"cut off after {n} characters", _WARNING[:n]) for n in range(1, len(_WARNING), 7)),
    ]
    return listed + made


@pytest.fixture(scope="session")
def damaged() -> list[dict]:
    """Bodies with a fault that costs no notice: `why`, `body`, the notice that is read, and when it is due.

    `after` is seconds from 2026-01-01T00:00:00Z, the event's time; it is received a second later.
    """
    notice = {"kind": "interruption", "node": "i-1234567890abcdef0", "after": 121.0}
    nested, long = "[" * 900 + "]" * 900, '"' + "1" * 100_000 + '"'
    made = [
        {"why": why, "body": _WARNING.replace('"2026-01-01T00:00:00Z"', time), **notice}
        for why, time in (("a time that is nested", nested), ("a time of a hundred kilobytes", long))
    ]
    return _lines("damaged.jsonl") + made


def _wrapped(text: str, times: int) -> str:
    for _ in range(times):
        text = json.dumps(text)
    return text


# -- SQS ---------------------------------------------------------------------------------------------------


class FakeSqs:
    """An SQS queue in memory: visibility, receipts that a later delivery replaces, long polls, failures."""

    url = "queue"

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._messages: dict[str, dict] = {}
        self._news = asyncio.Event()
        self.failures: dict[str, list[Exception]] = {}
        self.calls: Counter[str] = Counter()
        self.odd_answers: list[dict] = []

    async def send(self, *bodies: str) -> None:
        for body in bodies:
            identity = f"m{next(self._numbers)}"
            self._messages[identity] = {"body": body, "sent": time.time(), "visible": 0.0, "receipt": ""}
        self._news.set()

    async def left(self) -> int:
        return len(self._messages)

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    async def receive_message(self, **asked) -> dict:
        self._call("receive_message")
        if self.odd_answers:
            return self.odd_answers.pop(0)
        assert asked["MaxNumberOfMessages"] <= 10
        ends = time.monotonic() + asked["WaitTimeSeconds"]
        while True:
            now = time.monotonic()
            ready = [i for i, m in self._messages.items() if m["visible"] <= now]
            if ready or now >= ends:
                break
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(0.05, ends - now)):
                    await self._news.wait()
        found = []
        for identity in ready[: asked["MaxNumberOfMessages"]]:
            message = self._messages[identity]
            message["visible"] = now + asked["VisibilityTimeout"]
            message["receipt"] = f"{identity}/{next(self._numbers)}"
            found.append(
                {
                    "MessageId": identity,
                    "ReceiptHandle": message["receipt"],
                    "Body": message["body"],
                    "Attributes": {"SentTimestamp": str(int(message["sent"] * 1000))},
                }
            )
        await asyncio.sleep(0)
        return {"Messages": found} if found else {}

    async def delete_message_batch(self, **asked) -> dict:
        self._call("delete_message_batch")
        await asyncio.sleep(0)
        assert 1 <= len(asked["Entries"]) <= 10
        assert len({entry["Id"] for entry in asked["Entries"]}) == len(asked["Entries"])
        done, failed = [], []
        for entry in asked["Entries"]:
            identity = entry["ReceiptHandle"].partition("/")[0]
            if (
                self._messages.get(identity, {"receipt": entry["ReceiptHandle"]})["receipt"]
                != entry["ReceiptHandle"]
            ):
                failed.append({"Id": entry["Id"], "Code": "ReceiptHandleIsInvalid", "SenderFault": True})
                continue
            self._messages.pop(identity, None)
            done.append({"Id": entry["Id"]})
        return {"Successful": done} | ({"Failed": failed} if failed else {})

    async def get_queue_attributes(self, **asked) -> dict:
        self._call("get_queue_attributes")
        hidden = sum(m["visible"] > time.monotonic() for m in self._messages.values())
        return {
            "Attributes": {
                "ApproximateNumberOfMessages": str(len(self._messages) - hidden),
                "ApproximateNumberOfMessagesNotVisible": str(hidden),
            }
        }


class MotoSqs:
    """The same queue at the stand-in for AWS, through boto3 in threads."""

    def __init__(self, endpoint: str) -> None:
        import boto3
        from botocore.config import Config

        self._client = boto3.client(
            "sqs",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2}),
        )
        self.url = self._client.create_queue(QueueName=f"q-{uuid.uuid4().hex}")["QueueUrl"]
        self.failures: dict[str, list[Exception]] = {}
        self.calls: Counter[str] = Counter()
        # Not the loop's own threads: those are waited for when a test ends, long polls and all.
        self._threads = ThreadPoolExecutor(4)

    def __getattr__(self, operation: str):
        async def call(**parameters):
            self.calls[operation] += 1
            if self.failures.get(operation):
                raise self.failures[operation].pop(0)
            return await self._in_thread(operation, **parameters)

        return call

    async def _in_thread(self, operation: str, **parameters):
        work = partial(getattr(self._client, operation), **parameters)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def send(self, *bodies: str) -> None:
        for start in range(0, len(bodies), 10):
            entries = [
                {"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[start : start + 10])
            ]
            answer = await self._in_thread("send_message_batch", QueueUrl=self.url, Entries=entries)
            assert not answer.get("Failed"), answer

    async def left(self) -> int:
        asked = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await self._in_thread("get_queue_attributes", QueueUrl=self.url, AttributeNames=asked)
        return sum(int(answer["Attributes"][name]) for name in asked)


@pytest.fixture
def sqs():
    """An SQS queue in memory."""
    return FakeSqs()


@pytest.fixture(scope="session")
def new_sqs():
    """Makes such queues, for tests of many examples."""
    return FakeSqs


@pytest.fixture(params=["memory", pytest.param("moto", marks=pytest.mark.slow)])
def any_sqs(request):
    """An SQS queue, in memory and at the stand-in for AWS: what holds of the one must hold of the other."""
    return FakeSqs() if request.param == "memory" else MotoSqs(request.getfixturevalue("aws_shim").url)
