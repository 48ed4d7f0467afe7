"""The checks of a pool through SkyPilot: its environment, what it keeps, who it is, and what is sold."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from cloud.errors import CloudError
from cloud.ports import Clock
from cloud.skypilot.clouds import CATALOGUE, CLOUDS, VERSION
from cloud.skypilot.offerings import SkyOfferings
from cloud.skypilot.process import HelperApart
from cloud.tombstones import Stage, Tombstones
from orchestrator.config.load import Config
from orchestrator.doctor.findings import Check, Finding, Findings, fail, ok, skipped, warn
from orchestrator.wiring.skypilot import regions_of, settings_of

_START: Final = 90.0  # s more than other checks get: SkyPilot's import takes long beside other work
_OLD: Final = 2.0  # days; SkyPilot fetches most catalogues every 7 hours
_OWNER: Final = "run this as the daemon's user, or give the file to that user"


class SkyPilotDoctor:
    """What can be found out of one pool by its helper, without a launch. A daemon may run meanwhile."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config, self._clock, self._table = config, clock, config.pool.cloud.skypilot
        places = regions_of(config, clock)
        self._helper = HelperApart(settings_of(config, places), clock)
        self._offerings = SkyOfferings(self._helper, places, clock=clock)

    def checks(self) -> list[Check]:
        """Every check."""
        needs = "skypilot/environment"
        return [
            Check(group="skypilot", name="environment", look=self._environment, longer=_START),
            Check(group="skypilot", name="programs", look=self._programs),
            Check(group="skypilot", name="home", look=self._home),
            Check(group="skypilot", name="ledger", look=self._ledger),
            Check(group="skypilot", name="credentials", look=self._credentials, needs=needs, longer=_START),
            Check(group="skypilot", name="catalogue", look=self._catalogue, needs=needs, longer=_START),
        ]

    async def close(self) -> None:
        """End the helper."""
        await self._helper.close()

    async def _environment(self) -> Findings:
        """Whether the helper starts and answers, and with the version that it is written for."""
        python = self._table.python
        advice = f"make it anew: tools/skypilot/install.sh {python.parent.parent}"
        try:
            answer = await self._helper.ask("info")
        except CloudError as error:
            return [fail(str(error), advice)]
        memory = f"{answer['rss'] / 1e6:.0f} MB"
        if answer["version"] != VERSION:
            return [fail(f"{python} has SkyPilot {answer['version']}; this needs {VERSION}", advice)]
        return [ok(f"the helper answers, with SkyPilot {VERSION} and {memory} of memory")]

    async def _programs(self) -> Findings:
        """What an engine's start over SSH needs of this host."""
        if CLOUDS[self._table.cloud].starts_by != "ssh":
            return [ok(f"engines on {self._table.cloud} start by user-data, which needs no program here")]
        wanted = ["ssh"] if self._table.public_ip else ["ssh", "nc"]
        missing = [name for name in wanted if shutil.which(name) is None]
        if missing:
            advice = "on Debian: apt-get install openssh-client netcat-openbsd"
            return [fail(f"engines start over SSH, and {' and '.join(missing)} is not here", advice)]
        return [ok(f"engines start over SSH, and {' and '.join(wanted)} is here")]

    async def _home(self) -> Findings:
        """Whether the helper's home can be written and nobody else looks into it: it holds SkyPilot's key."""
        home = self._table.home
        if not home.exists():
            return [_creatable(home)]
        found = home.stat()
        if not stat.S_ISDIR(found.st_mode) or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
            return [fail(f"{home} cannot be used by this user", _OWNER)]
        if found.st_mode & 0o077:
            text = f"{home} is open to others, and SkyPilot's key to the machines is in it"
            return [fail(text, f"chmod 700 {home}")]
        return [ok(f"{home} is private")]

    async def _ledger(self) -> Findings:
        """Whether launches can be written down, what was can be read, and no machine is out of reach."""
        path = self._table.ledger
        if not path.exists():  # nothing is made here: it would be another user's
            return [_creatable(path)]
        if not all(os.access(each, os.R_OK | os.W_OK) for each in (path, path.parent)):
            return [fail(f"{path} cannot be written by this user: nothing would be launched", _OWNER)]
        ledger = Tombstones(path, self._clock)
        entries = ledger.entries(self._config.pool_name)
        found: list[Finding] = []
        if ledger.damaged:
            text = f"{ledger.damaged} lines of {path} cannot be read: a machine on one of them is not listed"
            found.append(fail(text, "look for machines of the pool in the cloud's console, and at the disk"))
        living = [entry for entry in entries if entry.stage in (Stage.ASKED, Stage.MADE)]
        for region in sorted({entry.placement.region for entry in living} - set(self._table.regions)):
            count = sum(entry.placement.region == region for entry in living)
            text = f"{count} launches are not known to have ended, and the pool does not name the region"
            found.append(fail(text, "name the region until its machines have ended", region))
        return found or [ok(f"{path} knows {len(entries)} launches, {len(living)} of which have not ended")]

    async def _credentials(self) -> Findings:
        """Whether the cloud takes the credentials that SkyPilot finds."""
        for name, file in sorted(self._table.credentials.items()):
            if not os.access(file, os.R_OK):
                return [fail(f"{file}, for ~/{name}, cannot be read by this user", _OWNER)]
        try:
            who = await self._helper.ask("account", cloud=self._table.cloud)
        except CloudError as error:
            return [fail(str(error), "docs/how-to/skypilot-from-zero.md says where each cloud's belong")]
        return [ok(f"{self._table.cloud} takes the credentials{f' of {who}' if who else ''}")]

    async def _catalogue(self) -> Findings:
        """What SkyPilot's catalogue has of the pool's regions, zones and types, and at which price."""
        found: list[Finding] = []
        for part, offered in self._offerings.parts().items():
            try:
                sold = await self._offerings.list(part)
            except CloudError as error:
                found.append(fail(str(error), "choose a type and region of `sky show-gpus --all`", part))
                continue
            there = {o.placement: o.price for o in sold.offerings}
            lacks = sorted(
                f"{o.placement.instance_type} in {o.placement.zone}"
                for o in offered
                if o.placement not in there
            )
            if sold.problem:
                found.append(warn(sold.problem, "a launch without a price is held back by a spend cap", part))
            if lacks:
                found.append(warn(f"lacks {', '.join(lacks)}", "leave it out, or choose another type", part))
            prices = {place.instance_type: price for place, price in there.items() if price is not None}
            if prices and not lacks and not sold.problem:
                told = ", ".join(f"{kind} ${price:.3f} an hour" for kind, price in sorted(prices.items()))
                found.append(ok(told, part))
        return [*found, *self._age()] or [skipped("the pool names no region")]

    def _age(self) -> Findings:
        """Whether the daemon's prices are kept fresh. SkyPilot leaves a catalogue alone that does not look as
        it fetched it, also after a kill in the middle of that."""
        file = self._table.home / ".sky" / "catalogs" / CATALOGUE / self._table.cloud / "vms.csv"
        try:
            days = (self._clock.now() - file.stat().st_mtime) / 86_400.0
        except OSError:  # it is fetched at the first start, and another user may not see it
            return []
        if days < _OLD:
            return []
        text = f"{file} is {days:.0f} days old, and so are the prices that a spend cap goes by"
        advice = "unless you wrote it yourself, remove it: SkyPilot fetches it anew"
        return [warn(text, advice, "prices")]


def _creatable(path: Path) -> Finding:
    """Of something that the daemon makes at its first start."""
    if os.access(path.parent, os.W_OK | os.X_OK):
        return ok(f"{path} will be made")
    return fail(
        f"{path} cannot be made by this user", f"make {path.parent}, and give it to the daemon's user"
    )
