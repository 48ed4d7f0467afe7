"""`orchestrator journal`: what a journal holds, and its turns decided again. Needs no daemon."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput, PoolName
from orchestrator.units import DURATION_PATTERN, parse_duration

if TYPE_CHECKING:
    from orchestrator.config.tables.daemon import DaemonConfig
    from orchestrator.journal.file import JournalFile
    from orchestrator.journal.replay import Replayed, Selection
    from orchestrator.views.journal import DifferingTurnView, JournalView, ReplayView, TurnView

_STATE: Final = Path("state")

Where = Annotated[
    Path | None,
    Parameter(help="A journal or a state directory; else that of --config, else ./state."),
]
ConfigFile = Annotated[
    Path | None,
    Parameter(name=["--config", "-c"], help="The daemon's configuration file, to find its journal."),
]
Moment = Annotated[str | None, Parameter(metavar="EVENT|TIME")]


def show(path: Where = None, /, *, config: ConfigFile = None, output: PlainOutput = "table") -> int:
    """Say what a journal holds: events, recorded turns, from when to when.

    For example:
      orchestrator journal show --config pool.toml
      orchestrator journal show incident.db
    """
    with _opened(path, config) as journal:
        view = _contents(journal)
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import journal as render_journal

    shared.print_text(render_journal.contents(view))
    return shared.OK


def replay(
    path: Where = None,
    /,
    *,
    config: ConfigFile = None,
    first: Annotated[
        Moment,
        Parameter(
            name="--from",
            help="Only turns from here on: an event's number, a time such as 2026-11-24T03:00 (UTC), or how "
            "long before the last turn, such as 90m.",
        ),
    ] = None,
    until: Annotated[Moment, Parameter(help="Only turns up to here.")] = None,
    turn: Annotated[int | None, Parameter(help="Show this turn in words: seen, decided, why.")] = None,
    output: PlainOutput = "table",
) -> int:
    """Decide the recorded turns of a journal again and compare the plans byte for byte.

    The exit code is 0 when all are the same and 1 when not. Another version than the one that
    recorded them may differ: that shows where it would have decided otherwise.

    For example:
      orchestrator journal replay --config pool.toml
      orchestrator journal replay incident.db --from 2026-11-24T03:00 --until 2026-11-24T03:30
      orchestrator journal replay incident.db --turn 118
    """
    from orchestrator.journal.file import JournalError
    from orchestrator.journal.replay import replay as replayed

    with _opened(path, config) as journal:
        wanted = _selection(journal, first, until, turn)
        try:
            if turn is not None:
                return _one(next(iter(replayed(journal, wanted)), None), journal, turn, output)
            view = _outcome(journal, replayed(journal, wanted))
        except JournalError as error:
            raise CommandError(str(error), prefix="") from error
    if output == "json":
        shared.print_json(view)
    else:
        from orchestrator.render import journal as render_journal

        where = f" {path}" if path is not None else f" --config {config}" if config is not None else ""
        shared.print_text(render_journal.replay(view, f"orchestrator journal replay{where}"))
    return shared.OK if view["identical"] == view["turns"] else shared.ERROR


def copy(
    path: Where = None,
    /,
    *,
    to: Annotated[Path, Parameter(help="The new file.")],
    config: ConfigFile = None,
) -> int:
    """Copy a journal into one file, to be replayed elsewhere. A running daemon is not disturbed.

    For example:
      orchestrator journal copy --config pool.toml --to incident.db
    """
    from orchestrator.journal.file import JournalError

    with _opened(path, config) as journal:
        try:
            journal.copy(to)
        except JournalError as error:
            raise CommandError(str(error), prefix="") from error
    print(f"OK {to}")
    print(f"Next: orchestrator journal replay {to}")
    return shared.OK


def export(path: Where = None, /, *, config: ConfigFile = None, pool: PoolName = None) -> int:
    """Print every event as one line of JSON, oldest first.

    For example:
      orchestrator journal export incident.db | jq -c 'select(.kind == "NoticeSeen")'
    """
    from orchestrator.config.errors import meant
    from orchestrator.journal.file import JournalError

    with _opened(path, config) as journal:
        try:
            if pool is not None and pool not in (known := journal.contents().pools):
                raise CommandError(f"there is no pool {pool!r}{meant(pool, known)}", shared.USAGE)
            for event in journal.events():
                if pool is not None and event.pool != pool:
                    continue
                line = {
                    "seq": event.seq,
                    "at": event.at,
                    "pool": event.pool,
                    "kind": event.kind,
                    "node": event.node,
                    "data": _data(event.body),
                }
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        except JournalError as error:
            raise CommandError(str(error), prefix="") from error
    return shared.OK


@contextmanager
def _opened(path: Path | None, config: Path | None) -> Iterator[JournalFile]:
    from orchestrator.journal.file import JournalError, JournalFile

    if path is not None and config is not None:
        raise CommandError("give a path or --config, not both", shared.USAGE)
    with ExitStack() as while_open:
        try:
            if path is None and config is not None:
                path = _kept_at(shared.read_config(config).daemon, while_open)
            journal = while_open.enter_context(JournalFile.open(path or _STATE))
        except JournalError as error:
            raise CommandError(str(error), prefix="") from error
        yield journal


def _kept_at(daemon: DaemonConfig, while_open: ExitStack) -> Path:
    """Where a daemon's journal is; that of a pair is fetched from its database for as long as it is open."""
    from orchestrator.config.types import SQLITE

    if daemon.store == SQLITE:
        return daemon.state_dir
    from orchestrator.journal.fetch import fetch

    file = Path(while_open.enter_context(tempfile.TemporaryDirectory())) / "journal.db"
    fetch(daemon.store, file)
    return file


def _contents(journal: JournalFile) -> JournalView:
    from orchestrator.journal.file import JournalError

    try:
        found = journal.contents()
    except JournalError as error:
        raise CommandError(str(error), prefix="") from error
    recordings = [r for r in found.recordings if r.turns]
    return {
        "schema": "journal/1",
        "file": str(journal.path),
        "format": found.schema,
        "size": found.size,
        "pools": list(found.pools),
        "epoch": found.epoch,
        "events": found.events,
        "first_event": found.first_event,
        "last_event": found.last_event,
        "first_at": found.first_at,
        "last_at": found.last_at,
        "open_intents": found.open_intents,
        "turns": sum(r.turns for r in recordings),
        "first_turn_at": recordings[0].at if recordings else None,
        "last_turn_at": recordings[-1].until if recordings else None,
        "turn_bytes": sum(r.bytes for r in recordings),
        "versions": sorted({r.version for r in recordings}),
    }


def _selection(journal: JournalFile, first: str | None, until: str | None, turn: int | None) -> Selection:
    """What is to be replayed. Raises CommandError when nothing is recorded, or a moment cannot be read."""
    from orchestrator.journal.file import JournalError
    from orchestrator.journal.replay import Selection

    if turn is not None and (first is not None or until is not None):
        raise CommandError("--turn names one turn: leave --from and --until out", shared.USAGE)
    try:
        recordings = [r for r in journal.recordings() if r.turns]
    except JournalError as error:
        raise CommandError(str(error), prefix="") from error
    if not recordings:
        why = (
            'with daemon.record_turns = "off" none are'
            if journal.schema >= 2
            else "it was written by a version that recorded none"
        )
        raise CommandError(f"{journal.path}: holds no recorded turns ({why})", prefix="")
    newest = max(r.until for r in recordings)
    first_event, since = (None, None) if first is None else _moment("--from", first, newest)
    last_event, end = (None, None) if until is None else _moment("--until", until, newest)
    return Selection(turn=turn, first_event=first_event, last_event=last_event, since=since, until=end)


def _moment(flag: str, text: str, newest: float) -> tuple[int | None, float | None]:
    """The number of an event, or a time."""
    import re

    if text.isdigit():
        return int(text), None
    if re.match(DURATION_PATTERN, text):
        return None, newest - parse_duration(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"{flag} {text}: is neither the number of an event, nor a time such as 2026-11-24T03:00, nor a "
            "length of time such as 90m",
            shared.USAGE,
        ) from None
    return None, (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def _outcome(journal: JournalFile, turns: Iterator[Replayed]) -> ReplayView:
    from orchestrator import __version__

    count = unreadable = 0
    first: Replayed | None = None
    last: Replayed | None = None
    versions: set[str] = set()
    different: list[DifferingTurnView] = []
    for found in turns:
        first, last = first or found, found
        count += 1
        unreadable += bool(found.unreadable)
        versions.add(found.version)
        if not found.identical:
            different.append(_different(found))
    if first is None or last is None:
        raise CommandError(
            f"{journal.path}: no turn was recorded there; `orchestrator journal show` says from when to when",
            prefix="",
        )
    return {
        "schema": "replay/1",
        "file": str(journal.path),
        "version": __version__,
        "versions": sorted(versions),
        "turns": count,
        "identical": count - len(different),
        "differing": len(different) - unreadable,
        "unreadable": unreadable,
        "first_turn": first.number,
        "last_turn": last.number,
        "first_at": first.at,
        "last_at": last.at,
        "different": different,
    }


def _different(found: Replayed) -> DifferingTurnView:
    return {
        "turn": found.number,
        "event": found.seq,
        "at": found.at,
        "pool": found.pool,
        "version": found.version,
        "differences": list(found.differences),
        "unreadable": found.unreadable or None,
    }


def _one(found: Replayed | None, journal: JournalFile, number: int, output: str) -> int:
    """Show one turn."""
    if found is None:
        raise CommandError(f"{journal.path}: turn {number} is not recorded in it", prefix="")
    if found.unreadable:
        raise CommandError(f"{journal.path}: turn {number}: {found.unreadable}", prefix="")
    if found.scene is None:
        raise CommandError(f"{journal.path}: turn {number}: {'; '.join(found.differences)}", prefix="")
    if output == "json":
        shared.print_json(_turn(found))
    else:
        from orchestrator.render import journal as render_journal

        shared.print_text(render_journal.turn(found, found.scene))
    return shared.OK if found.identical else shared.ERROR


def _turn(found: Replayed) -> TurnView:
    from orchestrator.journal.codec import encode, encode_memory
    from orchestrator.journal.turn_codec import canonical
    from policies import explain

    scene = found.scene
    if scene is None:
        raise CommandError(f"turn {found.number} could not be decided again")
    return {
        "schema": "turn/1",
        "turn": found.number,
        "event": found.seq,
        "at": found.at,
        "pool": found.pool,
        "version": found.version,
        "identical": found.identical,
        "differences": list(found.differences),
        "wanted": json.loads(encode(scene.pool)),
        "world": json.loads(encode(scene.world)),
        "memory": json.loads(encode_memory(scene.memory)),
        "plan": dict(found.recorded),
        "plan_now": json.loads(canonical(scene.plan)),
        "sentences": list(explain.pool_sentences(scene.fleet, scene.world, scene.memory)),
    }


def _data(body: bytes) -> Any:
    """An event's fields; text where they cannot be read."""
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
