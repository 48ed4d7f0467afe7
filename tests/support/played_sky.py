"""A helper of SkyPilot that is played: real wire and threads, and a cloud in a database for SkyPilot.

    python tests/support/played_sky.py HOME

It is what `cloud.skypilot.process` starts in tests, as an entry of `HelperSettings`. The cloud outlives it,
as a cloud does: machines, faults that are due and calls that arrived are in HOME/cloud.db, which
`PlayedCloud` opens too. Variables: PLAYED_CLOUD is another directory for that file, PLAYED_VERSION the
version that it says, PLAYED_IMPORT the seconds that its start takes.
"""

import contextlib
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from cloud.skypilot.helper.refusals import Said  # noqa: E402
from cloud.skypilot.helper.serve import resident, serve  # noqa: E402

_TABLES = """
create table if not exists machine(id integer primary key, cluster, token, pool, spot, state);
create table if not exists fault(id integer primary key, do, kind, word, seconds);
create table if not exists asked(id integer primary key, do, token);
"""
PRICES = {"g6.xlarge": (0.8048, 0.30), "g5.xlarge": (1.006, 0.41)}


class PlayedCloud:
    """The cloud, from outside."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(
            home / "cloud.db", isolation_level=None, check_same_thread=False, timeout=30
        )
        self._db.executescript(f"pragma journal_mode=wal;{_TABLES}")

    def fault(self, do: str, kind: str, word: str = "", times: int = 1, seconds: float = 0.0) -> None:
        """The next questions of that kind, "*" for any: "refuse" answers an error of that word, "lose" does
        it and answers nothing, "die" does it and ends the helper, "die-first" ends it first, "hold" waits."""
        for _ in range(times):
            self._db.execute(
                "insert into fault(do, kind, word, seconds) values(?,?,?,?)", (do, kind, word, seconds)
            )

    def machines(self, like: str = "%") -> list[dict]:
        rows = self._db.execute(
            "select id, cluster, token, pool, spot, state from machine where token like ?", (like,)
        )
        return [
            dict(zip(("id", "cluster", "token", "pool", "spot", "state"), row, strict=True)) for row in rows
        ]

    def asked(self, do: str) -> int:
        return self._db.execute("select count(*) from asked where do=?", (do,)).fetchone()[0]

    def take(self, machine: str) -> None:
        """The cloud takes a machine back, or somebody ends it by hand."""
        self._db.execute(
            "update machine set state='terminated' where id=?", (int(machine.removeprefix("m-")),)
        )

    def forget(self) -> None:
        """The cloud shows nothing any more of what has ended."""
        self._db.execute("delete from machine where state='terminated'")

    def close(self) -> None:
        self._db.close()


class PlayedMachines:
    """What the lines of the wire ask for, on the played cloud. The methods are those of `SkyMachines`."""

    version = os.environ.get("PLAYED_VERSION", "played")

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._db.executescript(f"pragma journal_mode=wal;{_TABLES}")
        self._db.execute("insert into asked(do) values('begin')")
        time.sleep(float(os.environ.get("PLAYED_IMPORT", "0")))

    @property
    def _db(self):
        """A connection of this thread: transactions of two threads on one would mix."""
        if not hasattr(self._of_thread, "db"):
            path = Path(os.environ.get("PLAYED_CLOUD", Path.home())) / "cloud.db"
            self._of_thread.db = sqlite3.connect(path, isolation_level=None, timeout=30)
        return self._of_thread.db

    def info(self):
        return {
            "version": self.version,
            "rss": resident(),
            "pid": os.getpid(),
            "user": os.environ["SKYPILOT_USER_ID"],
        }

    def look(self, what):
        with self._asked("look", what):
            return self._look(what)

    def launch(self, what, may_launch, again):
        with self._asked("launch", what, again):
            found = self._look(what)
            if found["state"] != "absent" or not may_launch:
                return found
            self._db.execute(
                "insert into machine(cluster, token, pool, spot, state) values(?,?,?,?,'running')",
                (what["cluster"], what["token"], what["tags"]["orchestrator:pool"], what["spot"]),
            )
            return {**self._look(what), "state": "pending"}

    def start(self, what):
        with self._asked("start", what):
            found = self._there(what)
            self._put(what, "running")
            return {**found, "state": "running"}

    def stop(self, what):
        with self._asked("stop", what):
            self._there(what)
            self._put(what, "stopped")

    def terminate(self, what):
        with self._asked("terminate", what):
            self._put(what, "terminated")

    def engine(self, what, script):
        with self._asked("engine", what):
            (Path.home() / f"engine-{what['cluster']}.sh").write_text(script)

    def account(self, cloud):
        with self._asked("account", {"token": cloud}):
            return "user/played [account=1]"

    def forget(self, cluster):
        self._db.execute("insert into asked(do, token) values('forget', ?)", (cluster,))

    def prices(self, cloud, region, zones, types, spot):
        with self._asked("prices", {"token": region}):
            unknown = set(types) - PRICES.keys()
            if unknown:
                raise Said(
                    "misconfigured", f"{cloud} has no instance type {min(unknown)} in SkyPilot's catalogue"
                )
            return [[zone, kind, PRICES[kind][spot]] for kind in types for zone in zones]

    def _look(self, what):
        row = self._db.execute(
            "select id, state from machine where cluster=? order by state='terminated', id",
            (what["cluster"],),
        ).fetchone()
        if row is None:
            return {"machine": "", "state": "absent", "address": ""}
        address = f"127.0.0.1:{what['port']}" if row[1] == "running" else ""
        return {"machine": f"m-{row[0]}", "state": row[1], "address": address}

    def _there(self, what):
        found = self._look(what)
        if found["state"] in ("absent", "terminated"):
            raise Said("not-found", "it has ended")
        return found

    def _put(self, what, state):
        self._db.execute(
            "update machine set state=? where cluster=? and state!='terminated'", (state, what["cluster"])
        )

    @contextlib.contextmanager
    def _asked(self, do, what, again=False):
        self._db.execute("insert into asked(do, token) values(?,?)", (do, what["token"]))
        fault = self._fault(do)
        kind, word, seconds = fault or ("", "", 0.0)
        if kind == "refuse":
            raise Said("uncertain" if again else word, "injected")
        if kind == "die-first":
            os._exit(9)
        if kind == "hold":
            time.sleep(seconds)
        yield
        if kind == "die":
            os._exit(9)
        if kind == "lose":
            raise Said("uncertain", "the answer was lost")

    def _fault(self, do):
        self._db.execute("begin immediate")
        try:
            row = self._db.execute(
                "select id, kind, word, seconds from fault where do in (?, '*') order by id", (do,)
            ).fetchone()
            if row is not None:
                self._db.execute("delete from fault where id=?", (row[0],))
        finally:
            self._db.execute("commit")
        return None if row is None else row[1:]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    serve(Path(sys.argv[1]), sys.stdin.buffer, answers, PlayedMachines)
