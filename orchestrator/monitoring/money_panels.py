"""The panels of money: what pools cost now, in the last week and in the month, and what an API would."""

from __future__ import annotations

from typing import Final

from orchestrator.monitoring.panel import Panel

MONEY: Final = (
    Panel(
        "Saved against on-demand",
        "Share of the price of the wanted nodes, all on-demand, that is not paid now.",
        (
            (
                "1 - sum(orchestrator_pool_cost_usd_per_hour{POOL})"
                " / sum(orchestrator_pool_on_demand_cost_usd_per_hour{POOL})",
                "saved",
            ),
        ),
        "percentunit",
        stat=True,
    ),
    Panel(
        "Dollars per million tokens",
        "Price of all billing nodes over the tokens that their engines generate.",
        (
            (
                "sum(orchestrator_pool_cost_usd_per_hour{POOL})"
                " / (sum(rate(orchestrator_pool_generated_tokens_total{POOL}[$__rate_interval]))"
                " * 3600 / 1e6)",
                "USD per million tokens",
            ),
        ),
        "currencyUSD",
        stat=True,
    ),
    Panel(
        "Dollars an hour",
        "What the pool costs now, and what it would cost on-demand.",
        (
            ("sum by (pool) (orchestrator_pool_cost_usd_per_hour{POOL})", "{{pool}}"),
            (
                "sum by (pool) (orchestrator_pool_on_demand_cost_usd_per_hour{POOL})",
                "{{pool}}, on-demand",
            ),
        ),
        "currencyUSD",
    ),
    Panel(
        "Spent and saved",
        "Since the journal began.",
        (
            ("sum(orchestrator_pool_spent_usd{POOL})", "spent"),
            ("sum(orchestrator_pool_saved_usd{POOL})", "saved"),
        ),
        "currencyUSD",
    ),
    Panel(
        "Utilisation and break-even",
        "Tokens of the last seven days over what the ready units could have served, and the utilisation "
        "above which the pool cost less than the API, people's work included.",
        (
            ("max by (pool) (orchestrator_pool_utilisation_ratio{POOL})", "{{pool}}"),
            (
                "max by (pool) (orchestrator_pool_break_even_utilisation_ratio{POOL})",
                "{{pool}}, break-even",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "A million tokens in seven days",
        "Prompts and answers of the last seven days, with and without people's work, beside what the API "
        "that the pool is held against asks for the same.",
        (
            (
                "max by (pool, people) (orchestrator_pool_usd_per_million_tokens{POOL})",
                "{{pool}}, {{people}} people",
            ),
            ("max by (pool) (orchestrator_pool_api_usd_per_million_tokens{POOL})", "{{pool}}, the API"),
        ),
        "currencyUSD",
    ),
    Panel(
        "The month",
        "Machines and providers since the month began (UTC), what they will have cost by its end, and "
        "cost.usd_per_month.",
        (
            ("max(orchestrator_month_spent_usd)", "spent"),
            ("max(orchestrator_month_expected_usd)", "expected"),
            ("max(orchestrator_month_budget_usd)", "budget"),
        ),
        "currencyUSD",
    ),
    Panel(
        "Expected share of the budget",
        "What the month will have cost, as a share of cost.usd_per_month.",
        (
            (
                "max(orchestrator_month_expected_usd) / max(orchestrator_month_budget_usd)",
                "of the budget",
            ),
        ),
        "percentunit",
        stat=True,
    ),
)
