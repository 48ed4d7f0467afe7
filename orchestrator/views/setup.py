"""The JSON of commands that need no daemon: validate, config show, doctor, bootstrap, support-bundle.

The rules of `orchestrator.views.api` hold here too.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from orchestrator.views.api import ProblemView

Verb = Literal["create", "update", "keep", "refuse"]


class PoolMeaningView(TypedDict):
    """What a pool of a configuration file comes to."""

    name: str
    model: str
    engine: str
    replicas: int
    spot_wanted: int
    on_demand_floor: int
    most_nodes: Annotated[int, "units that may live at once, with standby and surge; see units"]
    most_usd_per_hour: Annotated[float | None, "null without a cap where prices are not known here"]
    usual_usd_per_hour: Annotated[float | None, "when all is well; null where prices are not known here"]
    proposed_cap_usd_per_hour: Annotated[float | None, "a cap that holds nothing back; null likewise"]
    units: Annotated[dict[str, int], "serving units of a node by instance type; every other type serves 1"]
    sentences: list[str]


class BackendMeaningView(TypedDict):
    """One backend of a route."""

    backend: Annotated[str, "pool NAME or provider NAME, with the model in brackets"]
    when: Annotated[str, "when it is asked, in words; empty for the first, which gets every request"]


class RouteMeaningView(TypedDict):
    """Where requests for a name go."""

    models: Annotated[list[str], "the first is the name in lists, the others are aliases"]
    to: list[BackendMeaningView]
    written: Annotated[bool, "false: no route has this name, and a pool serves it"]
    stays: Annotated[bool, "no request of it may reach a provider"]
    task: Literal["chat", "embed", "rerank"]
    usd_per_day: Annotated[float | None, "most that it may cost at providers; null without a cap of its own"]
    sentence: str


class PricedModelView(TypedDict):
    """A model that a provider is asked for."""

    model: str
    known: Annotated[bool, "whether its price is known"]
    source: Annotated[str, "where the price is from; empty where it is not known"]


class ProviderMeaningView(TypedDict):
    """What a provider of a configuration file comes to."""

    name: str
    kind: Literal["anthropic", "openai"]
    url: str
    usd_per_day: Annotated[float | None, "null without a cap"]
    models: list[PricedModelView]
    sentence: str


class ValidateView(TypedDict):
    """`orchestrator validate FILE -o json`."""

    schema: Literal["validate/1"]
    file: str
    ok: bool
    pools: Annotated[list[PoolMeaningView], "empty unless ok"]
    routes: Annotated[list[RouteMeaningView], "empty unless ok, and where names of models are not looked at"]
    providers: Annotated[list[ProviderMeaningView], "empty unless ok"]
    problems: list[ProblemView]
    warnings: list[ProblemView]
    advice: Annotated[list[ProblemView], "what runs and is likely a mistake, but for what pools accept"]


class FindingView(TypedDict):
    """One thing that `orchestrator doctor` found."""

    group: str
    check: Annotated[str, "the check's name within its group"]
    subject: Annotated[str, "what it is about, when a check looks at several things"]
    state: Annotated[
        Literal["ok", "warn", "fail", "skipped"], "skipped: nobody could look, the text says why"
    ]
    text: Annotated[str, "what was found"]
    advice: Annotated[str, "what to do; empty where there is nothing to do"]
    seconds: Annotated[float, "how long the check took"]


class DoctorView(TypedDict):
    """`orchestrator doctor -o json`."""

    schema: Literal["doctor/1"]
    at: float
    version: str
    ok: Annotated[bool, "nothing fails; the exit code is 0"]
    findings: list[FindingView]


class DifferenceView(TypedDict):
    """One field that is not as it should be."""

    field: str
    before: Annotated[str, "empty for what is made anew"]
    after: Annotated[str, "lines of a difference for user-data"]


class KeptView(TypedDict):
    """One field that somebody else set and that stays as it is."""

    field: str
    value: str


class PartView(TypedDict):
    """One part of what a pool needs on AWS."""

    region: str
    kind: str
    name: str
    verb: Annotated[Verb, "refuse: it is not ours, or it cannot be made"]
    done: Annotated[bool, "it was changed in this run"]
    differences: list[DifferenceView]
    kept: list[KeptView]
    note: str


class RegionSettingsView(TypedDict):
    """What belongs into a region's table of the configuration file."""

    region: str
    launch_template: str
    launch_template_version: Annotated[int | None, "null until it is made"]
    notice_queue: Annotated[str, "empty until it is made"]


class BootstrapView(TypedDict):
    """`orchestrator aws bootstrap -o json`."""

    schema: Literal["bootstrap/1"]
    ok: bool
    pending: Annotated[bool, "there is something left to change"]
    parts: list[PartView]
    settings: list[RegionSettingsView]
    error: Annotated[str, "what failed; empty when nothing did"]


class SettingView(TypedDict):
    """One key of a configuration with its value in force."""

    key: Annotated[str, "the whole name, such as pool.llama.drain.budget"]
    table: str
    name: str
    value: Annotated[str | None, "as the file would have it; null for a key that is not set"]
    origin: Literal["file", "default"]
    line: Annotated[int | None, "in the file, from 1"]


class ConfigShowView(TypedDict):
    """`orchestrator config show -o json`."""

    schema: Literal["config-show/1"]
    file: str
    settings: list[SettingView]


class BundlePartView(TypedDict):
    """One file of a support bundle."""

    name: str
    ok: Annotated[bool, "false where it could not be collected; its text says why"]
    size: Annotated[int, "bytes"]


class BundleView(TypedDict):
    """`orchestrator support-bundle -o json`."""

    schema: Literal["support-bundle/1"]
    file: str
    parts: list[BundlePartView]
