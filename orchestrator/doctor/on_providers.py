"""The checks of providers and routes: one cheap question to each API, and one to the gateway."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

import aiohttp
from yarl import URL

from cloud.ports import Clock
from cloud.providers.kinds import wire_of
from cloud.threads import WorkerThreads
from orchestrator.api.client import ClientError, ControlClient
from orchestrator.config.checks.providers import key_fault, models_used
from orchestrator.config.load import Config
from orchestrator.config.tables.provider import ProviderConfig
from orchestrator.config.types import is_credential, unreadable
from orchestrator.doctor import providers
from orchestrator.doctor.findings import Check, Findings
from orchestrator.doctor.providers import Answer, Served, Trouble

_ANSWER: Final = 10.0  # s for an answer of a provider
_FROM_GATEWAY: Final = 5.0  # s
_LARGEST: Final = 8 * 2**20  # bytes of a list of models
_SAID: Final = 300  # characters of an answer that is repeated
_OK: Final = 200


class ProvidersDoctor:
    """Everything that can be found out about the providers and routes of one configuration."""

    def __init__(self, config: Config, clock: Clock, threads: WorkerThreads) -> None:
        self._config, self._clock, self._threads = config, clock, threads
        self._used = models_used(config.routes)

    def checks(self) -> list[Check]:
        """Every check; none for a file without providers and routes."""
        found = []
        for name, provider in self._config.providers.items():
            models = tuple(self._used.get(name, {}))
            found += [
                Check(group="providers", name=name, look=partial(self._reach, provider)),
                Check(
                    group="providers",
                    name=f"{name}-models",
                    look=partial(self._models, provider, models),
                    needs=f"providers/{name}",
                ),
                Check(group="providers", name=f"{name}-prices", look=partial(self._prices, name, models)),
            ]
        if self._config.routes:
            found.append(Check(group="providers", name="routes", look=self._routes))
        return found

    async def _reach(self, provider: ProviderConfig) -> Findings:
        key, why = await self._threads.run(partial(_key_of, provider))
        answer = await self._ask(provider, key)
        return providers.reached(provider.address, answer, key=why)

    async def _models(self, provider: ProviderConfig, models: tuple[str, ...]) -> Findings:
        key, _ = await self._threads.run(partial(_key_of, provider))
        listed = (await self._ask(provider, key)).models
        unlisted = [model for model in models if listed is None or model not in listed]
        answers = [await self._ask(provider, key, model) for model in unlisted]
        # a provider that tells nothing of single models has said all in its list
        silent = listed is None
        missing = [m for m, a in zip(unlisted, answers, strict=True) if a.status in (400, 404) and not silent]
        return providers.models(models, missing)

    async def _prices(self, name: str, models: tuple[str, ...]) -> Findings:
        provider, now = self._config.providers[name], self._clock.now()
        routes = [r for r in self._config.routes if any(b.provider == name for b in r.to)]
        capped = provider.usd_per_day is not None or any(r.usd_per_day is not None for r in routes)
        sources = {model: provider.price_source(model, at=now) for model in models}
        return providers.prices(sources, capped=capped)

    async def _routes(self) -> Findings:
        served, error = await self._threads.run(self._served)
        return providers.routes([route.models for route in self._config.routes], served, error)

    def _served(self) -> tuple[list[Served] | None, str]:
        path = self._config.gateway.socket
        try:
            said: Mapping[str, Any] = ControlClient(path, timeout=_FROM_GATEWAY).get("/v1/routes")
            return [_served(row) for row in said["routes"]], ""
        except ClientError:
            return None, f"nothing answers on {path}"
        except (KeyError, TypeError, AttributeError):
            return None, f"what answers on {path} is no gateway of this version"

    async def _ask(self, provider: ProviderConfig, key: str, model: str = "") -> Answer:
        """One GET. Follows no redirection: it would take the key elsewhere."""
        wire = wire_of(provider.kind, provider.address, api_version=provider.api_version)
        path, headers = wire.models(key, model)
        url = URL(str(URL(provider.address).origin()) + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=_ANSWER, sock_connect=provider.connect_timeout)
        try:
            trust = ssl.create_default_context(cafile=None)
            if provider.ca_file is not None:
                trust.load_verify_locations(provider.ca_file)
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=trust),
                    timeout=timeout,
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                session.get(url, headers=headers, allow_redirects=False) as answer,
            ):
                return self._read(answer.status, answer.headers, await _body(answer), key)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Answer(status=0, said=_words(error), trouble=_trouble(error))

    def _read(self, status: int, headers: Mapping[str, str], body: bytes, key: str) -> Answer:
        skew = None
        if "Date" in headers:
            try:
                skew = parsedate_to_datetime(headers["Date"]).timestamp() - self._clock.now()
            except ValueError:
                skew = None
        said = "" if status == _OK else body[:_SAID].decode(errors="replace").strip()
        said = said.replace(key, "(hidden)") if key else said
        return Answer(status=status, said=said, models=_models(body) if status == _OK else None, skew=skew)


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """What was answered, as far as anybody needs it."""
    body = b""
    async for part in answer.content.iter_any():
        body += part
        if len(body) > _LARGEST:
            break
    return body


def _key_of(provider: ProviderConfig) -> tuple[str, str | None]:
    """The key to show, and why it cannot be; None where the file names none."""
    file = provider.api_key_file
    if file is None:
        return "", None
    if is_credential(file):
        return "", f"{file} is a credential of the gateway's service"
    if fault := unreadable(file) or key_fault(file):
        return "", fault
    return file.read_text(encoding="ascii").strip(), ""


def _models(body: bytes) -> frozenset[str] | None:
    """The ids of a list of models, None for a body that is none."""
    try:
        return frozenset(str(row["id"]) for row in json.loads(body)["data"])
    except (ValueError, KeyError, TypeError):
        return None


def _served(row: Mapping[str, Any]) -> Served:
    """One route of `gateway-routes/1`. Raises KeyError, TypeError for one of another shape."""
    return Served(
        models=tuple(row["models"]),
        goes_to=str(row["goes_to"]),
        left_out=[str(why) for why in row["left_out"]],
        servable=bool(row["servable"]),
    )


def _trouble(error: BaseException) -> Trouble:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError | aiohttp.ClientSSLError):
        return Trouble.CERTIFICATE
    if isinstance(error, aiohttp.ClientConnectorDNSError | socket.gaierror):
        return Trouble.NAME
    if isinstance(error, aiohttp.ClientConnectorError | TimeoutError | ConnectionError):
        return Trouble.CONNECTION
    return Trouble.OTHER


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_ANSWER:g} s"
    return str(error) or type(error).__name__
