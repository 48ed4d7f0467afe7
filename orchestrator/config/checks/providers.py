"""Whether each provider can be asked, with which key, and whether what its models cost is known."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cloud.clock import SystemClock
from cloud.providers.prices import OwnRates
from orchestrator.config.errors import Found, Key, dotted, meant
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.config.tables.provider import ANTHROPIC, ProviderConfig
from orchestrator.config.tables.route import RouteConfig
from orchestrator.config.types import UNLIMITED, is_credential, is_open, unreadable
from orchestrator.units import shown
from policies.spend import dollars, most, usd

_NAME: Final = re.compile(r"[a-z0-9-]{1,24}")
_ENDPOINT: Final = re.compile(r"/(chat/completions|completions|messages|responses|embeddings|models)/?$")
_ANTHROPIC_ONLY: Final = ("api_version", "sampling")
_TIMES: Final = ("connect_timeout", "first_token_timeout", "answer_timeout")


def provider_errors(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """Everything for which no request could be sent, or none of which the cost is known."""
    for name, provider in parsed.provider.items():
        at = ("provider", name)
        if not _NAME.fullmatch(name):
            yield (
                at,
                f"{shown(name)} cannot be a provider's name; use 1 to 24 of the characters a-z, 0-9 and -",
            )
        yield from _url_errors((*at, "url"), provider)
        for key in _ANTHROPIC_ONLY:
            usual = ProviderConfig.model_fields[key].default
            if provider.kind != ANTHROPIC and getattr(provider, key) != usual:
                yield (*at, key), f'is read only where kind = "{ANTHROPIC}"; leave it out'
        for key in _TIMES:
            if getattr(provider, key) <= 0:
                yield (*at, key), 'is 0, which lets nothing pass; write a duration such as "30s"'
        if "usd_per_day" not in provider.model_fields_set and not provider.local:
            yield (
                (*at, "usd_per_day"),
                "is missing: a provider is paid by the request, and none is asked without a cap; write the "
                f'most US dollars of a day, such as usd_per_day = "50", or "{UNLIMITED}"',
            )
        for model, price in provider.price.items():
            if price.input is None and (price.tier or price.rates() != OwnRates()):
                yield (
                    (*at, "price", model, "input"),
                    "is missing: without it none of the prices beside it holds",
                )
        if role == "any":
            yield from _key_faults((*at, "api_key_file"), provider, role)
        if role in ("gateway", "any"):
            if provider.api_key_file is None and not provider.url:
                yield (
                    (*at, "api_key_file"),
                    f"is missing: {provider.address} asks for a key; write the file that holds yours",
                )
            yield from _certificate_errors((*at, "ca_file"), provider)
    charges = any(pool.charge.input is not None for pool in parsed.pool.values())
    if role == "gateway" and (parsed.provider or charges):
        yield from _book_errors(parsed)
    yield from _price_errors(parsed)


def _book_errors(parsed: ConfigFile) -> Iterator[Found]:
    """A spend file that the gateway could not write: nothing could be reserved, and nothing sent."""
    file = parsed.gateway.spend_file
    there = file if file.exists() else file.parent
    may_come = file.parent == parsed.daemon.state_dir and not file.parent.exists()
    if not may_come and not os.access(there, os.W_OK):
        yield (
            ("gateway", "spend_file"),
            f"{there} cannot be written by this user, so that nothing could be booked or sent to what costs; "
            "name a file in a directory of the gateway's",
        )


def provider_warnings(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """What may surprise, cost more than is meant, or was forgotten."""
    used = models_used(parsed.route)
    for name, provider in parsed.provider.items():
        at = ("provider", name)
        models = used.get(name, {})
        if not models:
            yield at, "is asked by no route; name it in the `to` of a [[route]], or leave it out"
        for model in provider.price:
            if models and model not in models:
                yield (
                    (*at, "price", model),
                    f"no route asks {name} for {shown(model)}{meant(model, models)}; correct the name, or "
                    "leave the table out",
                )
        for model in models:
            yield from _cap_warnings(at, provider, model)
        key_file = provider.api_key_file
        if role in ("gateway", "any") and key_file is not None and is_open(key_file):
            yield (
                (*at, "api_key_file"),
                f"{key_file} can be read by other users; close it with chmod 600",
            )
        if role == "gateway":  # which serves the rest: a pool is not taken down for a key of what stands in
            for key, fault in _key_faults((*at, "api_key_file"), provider, role):
                yield key, f"{fault}; until it is there, {name} is not asked"
        if provider.allow_http and provider.url.startswith("http://") and not provider.local:
            yield (*at, "allow_http"), "prompts, answers and the key cross the network in the clear"


def models_used(routes: Sequence[RouteConfig]) -> dict[str, dict[str, Key]]:
    """For each provider, the models that routes ask it for, each with the first place that does."""
    found: dict[str, dict[str, Key]] = {}
    for number, route in enumerate(routes):
        for place, backend in enumerate(route.to):
            if backend.provider and backend.model:
                models = found.setdefault(backend.provider, {})
                models.setdefault(backend.model, ("route", number, "to", place, "model"))
    return found


def _url_errors(at: Key, provider: ProviderConfig) -> Iterator[Found]:
    try:
        url = urlsplit(provider.address)
        host, _ = url.hostname, url.port
    except ValueError as error:
        yield at, f"is not an address ({error}); write one such as https://api.example.com"
        return
    if "@" in url.netloc:
        # what stands before the @ may be a secret, and is not repeated
        yield at, "holds a user or a password; write them into api_key_file, and only the address here"
    elif url.scheme not in ("https", "http") or not host:
        yield at, f"{shown(provider.url)} is not an address; write one such as https://api.example.com"
    elif url.query or url.fragment:
        yield at, f"{shown(provider.url)} has a query; write the base address without what begins with ? or #"
    elif _ENDPOINT.search(url.path):
        yield (
            at,
            f"{shown(provider.url)} is the address of one call; write the base address, such as "
            f"{shown(_ENDPOINT.sub('', provider.url))}",
        )
    elif url.scheme == "http" and not provider.local and not provider.allow_http:
        yield (
            at,
            f"{shown(provider.url)} is not encrypted, and the key and all prompts would cross the network "
            "in the clear; write https://, or allow_http = true beside it where the network is yours",
        )


def _key_faults(at: Key, provider: ProviderConfig, role: Role) -> Iterator[Found]:
    """What is wrong with the file that is named."""
    file = provider.api_key_file
    if file is None:
        return
    if is_credential(file):
        if role != "any":
            yield at, f"{file}: no service manager gave this process credentials; name a file"
    elif fault := unreadable(file) or key_fault(file):
        yield at, fault


def key_fault(file: Path) -> str:
    """Why a file that can be read holds no key, as a sentence; empty when it holds one."""
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return f"{file} does not hold a key as text"
    if not key:
        return f"{file} is empty; write the key into it"
    if not key.isprintable() or " " in key:
        return f"{file} holds more than a key; write the key alone into it, in one line"
    return ""


def _certificate_errors(at: Key, provider: ProviderConfig) -> Iterator[Found]:
    if provider.ca_file is None:
        return
    if fault := unreadable(provider.ca_file):
        yield at, fault
        return
    try:
        ssl.create_default_context(cafile=str(provider.ca_file))
    except (ssl.SSLError, OSError):
        yield at, f"{provider.ca_file} holds no certificate (-----BEGIN CERTIFICATE-----)"


def _price_errors(parsed: ConfigFile) -> Iterator[Found]:
    """Models without a known price under a cap, which could not be enforced."""
    now = SystemClock().now()
    for number, route in enumerate(parsed.route):
        for place, backend in enumerate(route.to):
            provider = parsed.provider.get(backend.provider)
            if provider is None or not backend.model:
                continue
            capped = provider.usd_per_day is not None or route.usd_per_day is not None
            if capped and provider.price_of(backend.model, at=now) is None:
                yield (
                    ("route", number, "to", place, "model"),
                    f"the price of {shown(backend.model)} of {backend.provider} is not known, so the cap "
                    f"cannot be enforced; {_write_price(backend.provider, backend.model)}",
                )


def _cap_warnings(at: Key, provider: ProviderConfig, model: str) -> Iterator[Found]:
    """Caps that one request of the largest size would not fit under: it is refused while others are sent."""
    price = provider.price_of(model, at=SystemClock().now())
    if price is None:
        if not provider.local:
            yield (
                at,
                f"the price of {shown(model)} is not known, so it is booked as unknown; "
                f"{_write_price(str(at[-1]), model)}",
            )
        return
    largest = most(price, prompt=price.context, output=price.most_output)
    if provider.usd_per_day is not None and largest > usd(str(provider.usd_per_day)):
        yield (
            (*at, "usd_per_day"),
            f"a request of the largest size to {shown(model)} may cost {dollars(largest)}, more than the cap "
            "of a day, and is refused; raise the cap unless prompts are short",
        )


def _write_price(provider: str, model: str) -> str:
    table = dotted(("provider", provider, "price", model))
    return (
        f"write [{table}] with input and output in US dollars per million tokens, or install the price list "
        "(the extra `providers`) where it is not"
    )
