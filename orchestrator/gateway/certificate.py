"""The certificate that clients are shown, followed from its files while the gateway runs.

Whoever renews it replaces two files, one after the other. A pair is taken up once both have been still for a
moment, and only a pair that works: until then the one before it is shown. Each pair has a context of its own:
connections keep the one that they began with, so nothing that is open hears of a change.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any, Final

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.certificates import Certificate, CertificateError, day, load
from cloud.threads import WorkerThreads
from orchestrator.gateway.config import GatewayConfig, GatewayError
from orchestrator.gateway.metrics import GatewayMetrics

log = structlog.get_logger("gateway")

_EVERY: Final = 1.0  # s between two looks at the files; as long they must have been still
_PATIENCE: Final = 10.0  # s for a look, until it is said that the files cannot be read

Stamp = tuple[tuple[int, ...], ...]


class ShownCertificate:
    """The pair of today. `fault` says why another one that lies in the files is not shown, empty for none."""

    def __init__(
        self,
        cert_file: Path,
        key_file: Path,
        clock: Clock,
        metrics: GatewayMetrics,
        *,
        every: float = _EVERY,
    ) -> None:
        self._files = (cert_file, key_file)
        self._clock, self._metrics, self._every = clock, metrics, every
        self._threads = WorkerThreads("certificate", 1)
        self._seen: Stamp = ()
        self._taken: Stamp = ()
        self._shown: Certificate
        self._following: asyncio.Task[None] | None = None
        self.fault = ""

    async def start(self) -> None:
        """Read the first pair, as it is, and follow its files from then on. Raises GatewayError."""
        try:
            stamp, found = await self._threads.run(self._read)
        except (CertificateError, OSError) as error:
            raise GatewayError(f"gateway: tls_cert_file, tls_key_file: {_text(error)}") from None
        self._take(stamp, found)
        if fault := unfit(found, None, self._clock.now()):
            log.error("tls_certificate.rejected", error=fault)
        self._following = asyncio.create_task(self._run(), name="certificate")

    def stop(self) -> None:
        """Follow the files no further. Idempotent."""
        if self._following is not None:
            self._following.cancel()
        self._threads.close()

    def context(self) -> ssl.SSLContext:
        """What the next connection is made with."""
        return self._shown.context

    def describe(self) -> dict[str, Any]:
        """As `/v1/state` and `/v1/routes` show it."""
        return {"expires": self._shown.expires, "names": list(self._shown.names), "fault": self.fault}

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._every)
            await self._look()

    async def _look(self) -> None:
        """Take up the pair in the files where it is another one, still, and good."""
        looking = asyncio.ensure_future(self._threads.run(self._news))
        done, _ = await asyncio.wait({looking}, timeout=_PATIENCE)
        if not done:
            self._refuse(f"the files were not read within {_PATIENCE:.0f} s")
        try:
            news = await looking
        except (CertificateError, OSError) as error:
            self._refuse(_text(error))
            return
        if news is None:
            return
        stamp, found = news
        if stamp == self._taken:
            self._metrics.certificate_refused, self.fault = False, ""
        elif fault := unfit(found, self._shown, self._clock.now()):
            self._refuse(fault)
        else:
            self._take(stamp, found)

    def _news(self) -> tuple[Stamp, Certificate] | None:
        """What lies in the files, where it is not what is shown, or was not a moment ago."""
        before, self._seen = self._seen, _stamp(self._files)
        if self._seen != before or (self._seen == self._taken and not self.fault):
            return None
        return self._read()

    def _read(self) -> tuple[Stamp, Certificate]:
        stamp = self._seen = _stamp(self._files)
        return stamp, load(*self._files)

    def _take(self, stamp: Stamp, found: Certificate) -> None:
        self._taken, self._shown, self.fault = stamp, found, ""
        self._metrics.certificate_taken(found.expires)
        log.info("tls_certificate.loaded", expires=day(found.expires), names=", ".join(found.names))

    def _refuse(self, fault: str) -> None:
        self._metrics.certificate_refused = True
        if fault != self.fault:
            self.fault = fault
            log.error("tls_certificate.refused", error=fault, shown_until=day(self._shown.expires))


def unfit(found: Certificate, shown: Certificate | None, now: float) -> str:
    """Why a pair is not to be shown: of two that have expired the younger one is."""
    if found.expires <= now and (shown is None or found.expires <= shown.expires):
        return f"the certificate expired on {day(found.expires)}"
    if found.begins > now and (shown is None or shown.expires > now):
        return f"the certificate is not valid before {day(found.begins)}"
    return ""


def shown_certificate(
    config: GatewayConfig, clock: Clock, metrics: GatewayMetrics
) -> ShownCertificate | None:
    """That of the configuration, not yet open; None for a listener in plain HTTP."""
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    return ShownCertificate(config.tls_cert_file, config.tls_key_file, clock, metrics)


def _stamp(files: tuple[Path, Path]) -> Stamp:
    """What is another when a file was replaced or written. Raises OSError."""
    found = [os.stat(file) for file in files]
    return tuple((f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns, f.st_ctime_ns) for f in found)


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {(error.strerror or str(error)).lower()}"
    return str(error)
