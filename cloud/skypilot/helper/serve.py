"""Questions from a pipe, answers to a pipe, a fixed number of threads between them."""

from __future__ import annotations

import fcntl
import gc
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from cloud.skypilot import wire
from cloud.skypilot.helper.refusals import judged, links

THREADS: Final = {"change": 4, "look": 3, "end": 2, "engine": 3, "alive": 1}
"""Threads of each lane. They live as long as the process: SkyPilot keeps a session of each cloud's library
for every thread, tens of megabytes each, and never lets one go."""

_CHANGES: Final = frozenset({"launch", "start", "stop", "terminate", "engine"})


def serve(home: Path, questions: BinaryIO, answers: BinaryIO, make: Callable[[], Any]) -> None:
    """Answer until the questions end, and end at once then: what is under way is asked again by the next.

    One helper at a time has a home: this one waits for the end of another, so that no launch of a helper
    whose daemon was killed goes on beside its own. `make` gives the object whose methods do the work, by
    the word of the question.
    """
    lock = os.open(home / "helper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another helper has {home}, and its end is waited for", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    machines = make()
    gc.collect()
    gc.freeze()
    speaking = threading.Lock()

    def say(value: dict[str, Any]) -> None:
        with speaking:
            _write(answers, wire.line({**value, "rss": resident()}))

    lanes: dict[str, queue.SimpleQueue[dict[str, Any]]] = {name: queue.SimpleQueue() for name in THREADS}
    open_questions: set[int] = set()  # not begun, and not taken back
    for name, number in THREADS.items():
        for _ in range(number):
            threading.Thread(
                target=_work, args=(machines, lanes[name], open_questions, say), daemon=True
            ).start()
    say({"hello": machines.version})
    while data := questions.readline(wire.LONGEST):
        question = wire.message(data)
        if question["do"] == wire.DROP:
            open_questions.discard(question["id"])
        else:
            open_questions.add(question["id"])
            lanes[wire.LANES[question["do"]]].put(question)
    os._exit(0)  # threads in the middle of a call are not waited for


def _work(
    machines: Any,
    jobs: queue.SimpleQueue[dict[str, Any]],
    open_questions: set[int],
    say: Callable[[dict[str, Any]], None],
) -> None:
    while True:
        question = jobs.get()
        number, do = question.pop("id"), question.pop("do")
        try:
            open_questions.remove(number)
        except KeyError:
            continue  # taken back
        try:
            say({"id": number, "ok": getattr(machines, do)(**question)})
        except Exception as error:
            word, text = judged(links(error), change=do in _CHANGES)
            say({"id": number, "error": {"word": word, "text": text}})
            del error


def _write(answers: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[answers.write(view) :]


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
