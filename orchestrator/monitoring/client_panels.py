"""The panels of clients: their tokens, times, keys and certificates, and how objectives towards them stand.

A gateway of one pool does not name it, so that nothing here is chosen by pool.
"""

from __future__ import annotations

from typing import Final

from orchestrator.monitoring.panel import Panel, quantile

_TOKENS: Final = "orchestrator_gateway_tokens_total"
_FIRST: Final = "orchestrator_gateway_first_token_seconds_bucket"
_GAP: Final = "orchestrator_gateway_inter_token_seconds_bucket"
_FAILED, _LATE = 0.001, 0.05  # the objectives of rules.yaml
_WINDOWS: Final = {"5m": "5 minutes", "1h": "an hour", "6h": "6 hours", "3d": "3 days"}


def _by_model(metric: str) -> tuple[tuple[str, str], ...]:
    """Median and p99 of a histogram for every model of every pool."""
    names = {0.5: "median", 0.99: "p99"}
    return tuple(
        (quantile(share, metric, "pool, model"), f"{{{{pool}}}} {{{{model}}}}, {name}")
        for share, name in names.items()
    )


def _burn(series: str, objective: float) -> tuple[tuple[str, str], ...]:
    """A share over several windows, as a multiple of what an objective allows."""
    return tuple(
        (f"max(orchestrator:{series}:rate{window}) / {objective}", words)
        for window, words in _WINDOWS.items()
    )


OBJECTIVES: Final = (
    Panel(
        "Burn of failed requests",
        "Share of requests that fail over the 0.1 % that may. At 1 a month's errors last for a month.",
        _burn("failed_share", _FAILED),
    ),
    Panel(
        "Burn of late first tokens",
        "Share of streams that wait longer than 2.5 s for their first token, over the 5 % that may.",
        _burn("late_share", _LATE),
    ),
)

CLIENTS: Final = (
    Panel(
        "Tokens a second by model",
        "What engines and providers counted: prompts fresh, out of the cache or written to it, and answers.",
        (
            (
                f"sum by (backend, model, kind) (rate({_TOKENS}[$__rate_interval]))",
                "{{backend}} {{model}}: {{kind}}",
            ),
        ),
        stacked=True,
    ),
    Panel(
        "Tokens a second by key",
        "The ten keys that use most, prompts and answers together.",
        ((f"topk(10, sum by (key) (rate({_TOKENS}[$__rate_interval])))", "key {{key}}"),),
        stacked=True,
    ),
    Panel(
        "Cached share of prompts",
        "Prompt tokens that came out of a cache, by who served them.",
        (
            (
                f'sum by (backend) (rate({_TOKENS}{{kind="cached"}}[$__rate_interval]))'
                f' / sum by (backend) (rate({_TOKENS}{{kind!="output"}}[$__rate_interval]))',
                "{{backend}}",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "First token",
        "From a stream's arrival at the gateway to its first token, waiting included.",
        _by_model(_FIRST),
        "s",
    ),
    Panel(
        "Between tokens of a stream",
        "Mean time of each stream from one token to the next, as its client sees it.",
        _by_model(_GAP),
        "s",
    ),
    Panel(
        "Tokens wasted a second",
        "That no client got: generated in vain, or read again when a stream went on elsewhere.",
        (
            (
                'sum(rate(orchestrator_gateway_tokens_wasted_total{kind="output"}[$__rate_interval]))'
                " or vector(0)",
                "generated in vain",
            ),
            (
                'sum(rate(orchestrator_gateway_tokens_wasted_total{kind="prompt"}[$__rate_interval]))'
                " or vector(0)",
                "read again",
            ),
        ),
    ),
    Panel(
        "In flight by key",
        "Requests that each key has under way; the ten that have most.",
        (("topk(10, sum by (key) (orchestrator_gateway_key_in_flight))", "key {{key}}"),),
    ),
    Panel(
        "Refused by limit",
        "Requests that a limit of their key did not allow, by key and limit; the ten most frequent.",
        (
            (
                "topk(10, sum by (key, limit) (rate(orchestrator_gateway_key_refused_total"
                "[$__rate_interval])))",
                "key {{key}}: {{limit}}",
            ),
        ),
        "reqps",
    ),
    Panel(
        "Refused for their key",
        "Requests without a key that holds, or for a model that theirs may not ask, by why.",
        (
            (
                "sum by (reason) (rate(orchestrator_gateway_clients_refused_total[$__rate_interval]))",
                "{{reason}}",
            ),
        ),
        "reqps",
        stacked=True,
    ),
    Panel(
        "Keys",
        "Keys in the file, by state.",
        (("max by (state) (orchestrator_gateway_keys)", "{{state}}"),),
    ),
    Panel(
        "Certificate",
        "Days until the certificate that clients are shown expires.",
        (
            (
                "(min(orchestrator_gateway_tls_certificate_expires_seconds) - time()) / 86400",
                "days left",
            ),
        ),
        "d",
        stat=True,
    ),
    Panel(
        "TLS handshakes",
        "By how they ended.",
        (
            (
                "sum by (result) (rate(orchestrator_gateway_tls_handshakes_total[$__rate_interval]))",
                "{{result}}",
            ),
        ),
        "ops",
        stacked=True,
    ),
    Panel(
        "Requests with estimated tokens",
        "The engine reports no usage, or the client left.",
        (
            (
                "sum by (backend, model) (rate(orchestrator_gateway_estimated_requests_total"
                "[$__rate_interval]))",
                "{{backend}} {{model}}",
            ),
        ),
        "reqps",
    ),
    Panel(
        "Usage not written yet",
        "Rows of what was used that wait for the usage file. They are written every second.",
        (("sum(orchestrator_gateway_usage_rows_waiting)", "rows"),),
    ),
    Panel(
        "Keys and usage out of order",
        "Each of these should be 0.",
        (
            ("max(orchestrator_gateway_keys_unread)", "no keys read"),
            ("max(orchestrator_gateway_keys_file_refused)", "keys file refused"),
            ("max(orchestrator_gateway_key_limits_alone)", "limits not shared"),
            ("max(orchestrator_gateway_usage_file_failing)", "usage not written"),
            ("max(orchestrator_gateway_tls_certificate_refused)", "certificate refused"),
        ),
    ),
)
