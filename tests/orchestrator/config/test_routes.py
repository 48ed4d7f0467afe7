"""Routes, providers and several pools in one file: what they come to, and every fault at its line."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.config.tables.file import Role
from tests.support.node_bench import make_certificate

CHAT = '[pool.chat]\nreplicas = 4\nmodel = "m/chat"\n'
EMBED = '[pool.embed]\nreplicas = 2\nmodel = "m/bge"\n'
API = '[provider.api]\nkind = "openai"\nurl = "http://127.0.0.1:9"\n'
HEAD = CHAT + EMBED + API  # nine lines


def load(directory: Path, text: str, role: Role = "any") -> Config:
    file = directory / "pool.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, role)


def problems(directory: Path, text: str, role: Role = "any") -> list[str]:
    """The faults of a file, without the directory."""
    with pytest.raises(ConfigError) as caught:
        load(directory, text, role)
    return [str(problem).replace(f"{directory}/", "") for problem in caught.value.problems]


def warnings(directory: Path, text: str) -> list[str]:
    """The warnings of a file, without the directory."""
    return [str(warning).replace(f"{directory}/", "") for warning in load(directory, text).warnings]


def route(to: str, more: str = "", models: str = '["a"]') -> str:
    return f"{HEAD}[[route]]\nmodels = {models}\nto = [{to}]\n{more}"


# name, text of the file, the beginning of every line of the complaint
FAULTS: list[tuple[str, str, list[str]]] = [
    ("unknown pool", route('{ pool = "chta" }'),
     ["pool.toml:12: route[0].to[0].pool: there is no pool \"chta\" (did you mean 'chat'?)"]),
    ("unknown provider", route('{ pool = "chat" }, { provider = "apo", model = "x" }'),
     ["pool.toml:12: route[0].to[1].provider: there is no provider \"apo\" (did you mean 'api'?)"]),
    ("neither", route('{ model = "x" }'),
     ["pool.toml:12: route[0].to[0]: names neither a pool nor a provider; write { pool = "]),
    ("both", route('{ pool = "chat", provider = "api" }'),
     ["pool.toml:12: route[0].to[0]: names a pool and a provider"]),
    ("no backend", route(""), ["pool.toml:12: route[0].to: is empty, so nobody would answer; write to = "]),
    ("no vectors", route("", 'task = "embed"\n'), ["pool.toml:12: route[0].to: is empty, so nobody"]),
    ("no name", route('{ pool = "chat" }', models="[]"),
     ["pool.toml:11: route[0].models: is empty, so nobody could ask for it"]),
    ("blank name", route('{ pool = "chat" }', models='[" a"]'),
     ["pool.toml:11: route[0].models[0]: \" a\" cannot be a model's name"]),
    ("one name twice in a route", route('{ pool = "chat" }', models='["a", "a"]'),
     ['pool.toml:11: route[0].models[1]: "a" is a name of this route already']),
    ("one name in two routes",
     route('{ pool = "chat" }', '[[route]]\nmodels = ["b", "a"]\nto = [{ pool = "embed" }]\n'),
     ['pool.toml:14: route[1].models[1]: "a" is a name of route[0] already; a name leads to one place']),
    ("a name that another pool serves", route('{ pool = "chat" }', models='["a", "m/bge"]'),
     ['pool.toml:11: route[0].models[1]: "m/bge" is what pool embed serves, and this route does not go']),
    ("unknown key of a backend", route('{ pol = "chat" }'),
     ["pool.toml:12: route[0].to[0].pol: is not a key; did you mean pool?"]),
    ("condition of the first", route('{ pool = "chat", when = ["down"] }'),
     ["pool.toml:12: route[0].to[0].when: the first backend gets every request"]),
    ("patience of the first", route('{ pool = "chat", waited = "2s" }'),
     ["pool.toml:12: route[0].to[0].waited: the first backend gets every request"]),
    ("unknown condition", route('{ pool = "chat" }, { pool = "embed", when = ["dwon"] }'),
     ["pool.toml:12: route[0].to[1].when[0]: \"dwon\" is not known (did you mean 'down'?)"]),
    ("condition as one text", route('{ pool = "chat" }, { pool = "embed", when = "down" }'),
     ['pool.toml:12: route[0].to[1].when: "down" is not a list; write when = ["down", "saturated"]']),
    ("no condition", route('{ pool = "chat" }, { pool = "embed", when = [] }'),
     ["pool.toml:12: route[0].to[1].when: is empty, so nothing would ever come here"]),
    ("waited without a unit", route('{ pool = "chat" }, { pool = "embed", waited = 2 }'),
     ['pool.toml:12: route[0].to[1].waited: 2 has no unit; write "2s"']),
    ("no wait", route('{ pool = "chat" }, { pool = "embed", waited = "0s" }'),
     ["pool.toml:12: route[0].to[1].waited: is 0: every request has waited for so long"]),
    ("one weight", route('{ pool = "chat", weight = 3 }, { pool = "embed" }'),
     ["pool.toml:12: route[0].to[0].weight: is the only weight of the route"]),
    ("weight of nothing", route('{ pool = "chat", weight = 0 }, { pool = "embed", weight = 1 }'),
     ["pool.toml:12: route[0].to[0].weight: 0 is too small; write at least 1"]),
    ("weight behind none",
     route('{ pool = "chat" }, { pool = "embed", weight = 1 }, { pool = "embed", weight = 1 }'),
     ["pool.toml:12: route[0].to[1].weight: stands behind a backend without one"]),
    ("weight with a condition",
     route('{ pool = "chat", weight = 1 }, { pool = "embed", weight = 1, when = ["down"] }'),
     ["pool.toml:12: route[0].to[1].when: a weight is a share of every request"]),
    ("provider without a model", route('{ provider = "api" }'),
     ["pool.toml:12: route[0].to[0].model: is missing; write the name under which api knows the model"]),
    ("data that stays", route('{ pool = "chat" }, { provider = "api", model = "x" }', 'data = "stays"\n'),
     ['pool.toml:12: route[0].to[1]: the data of "a" stays']),
    ("adapter that no node knows", route('{ pool = "chat", model = "sql" }'),
     ['pool.toml:12: route[0].to[0].model: "sql" is no adapter of pool chat, which serves m/chat; an ']),
    ("vectors of two models", route('{ pool = "embed" }, { pool = "chat" }', 'task = "embed"\n'),
     ['pool.toml:12: route[0].to[1]: serves "m/chat", and the route embeds with "m/bge"']),
    ("scores of two models", route('{ pool = "embed" }, { pool = "chat" }', 'task = "rerank"\n'),
     ['pool.toml:12: route[0].to[1]: serves "m/chat", and the route ranks with "m/bge": scores of two ']),
    ("vectors of another provider's",
     route('{ pool = "embed" }, { provider = "api", model = "bge" }', 'task = "embed"\n'),
     ['pool.toml:12: route[0].to[1]: serves "bge", and the route embeds with "m/bge": vectors of two models '
      "cannot be compared; leave it out, or where it is the same model write one name for both"]),
    ("vectors of a kind that has none",
     route('{ pool = "embed" }, { provider = "api", model = "m/bge" }', 'task = "embed"\n')
     .replace('kind = "openai"', 'kind = "anthropic"'),
     ["pool.toml:12: route[0].to[1].provider: api is of kind anthropic, and none of these embeds; leave it "
      "out: one of kind openai does"]),
    ("rankings of providers",
     route('{ pool = "embed" }, { provider = "api", model = "m/bge" }', 'task = "rerank"\n'),
     ["pool.toml:12: route[0].to[1].provider: api is of kind openai, and none of these ranks; leave it out: "
      "no provider does"]),
    ("texts of a pool that embeds",
     route('{ pool = "chat" }', '[[route]]\nmodels = ["b"]\nto = [{ pool = "embed" }]\n'
           '[pool.embed.engine]\ntask = "embed"\n'),
     ['pool.toml:15: route[1].to[0].pool: pool embed is started with engine.task = "embed", and this route '
      'has task = "chat"; write task = "embed" for the route, or leave the pool out']),
    ("vectors of a pool that writes",
     route('{ pool = "chat" }', 'task = "embed"\n[pool.chat.engine]\nkind = "vllm"\n'
           'args = ["--kv-cache-memory-bytes=1G"]\n'),
     ['pool.toml:12: route[0].to[0].pool: pool chat is started with engine.task = "generate", and this route '
      'has task = "embed"; write task = "chat" for the route']),
    ("default that is no route", route('{ pool = "chat" }', '[gateway]\ndefault_route = "b"\n'),
     ['pool.toml:14: gateway.default_route: no route is called "b"; write one of a, m/chat, m/bge']),
    ("cap of words", route('{ provider = "api", model = "x" }', 'usd_per_day = "lots"\n'),
     ['pool.toml:13: route[0].usd_per_day: "lots" is not an amount; write US dollars a day']),
    ("cap of nothing", route('{ provider = "api", model = "x" }', "usd_per_day = 0\n"),
     ["pool.toml:13: route[0].usd_per_day: 0 allows nothing at all"]),
    ("cap without a price", route('{ provider = "api", model = "x" }', 'usd_per_day = "2"\n'),
     ['pool.toml:12: route[0].to[0].model: the price of "x" of api is not known, so the cap cannot be '
      "enforced; write [provider.api.price.x] with input and output"]),
    ("unknown wire format", CHAT + '[provider.api]\nkind = "openia"\n',
     ["pool.toml:5: provider.api.kind: \"openia\" is not known (did you mean 'openai'?)"]),
    ("name of a provider", CHAT + '[provider."My API"]\nkind = "openai"\nurl = "http://[::1]:1"\n',
     ['pool.toml:4: provider."My API": "My API" cannot be a provider\'s name']),
    ("no cap", CHAT + '[provider.api]\nkind = "openai"\nurl = "https://llm.internal"\n',
     ["pool.toml:4: provider.api.usd_per_day: is missing: a provider is paid by the request"]),
    ("no key for the maker's own", CHAT + '[provider.api]\nkind = "anthropic"\nusd_per_day = "2"\n',
     ["pool.toml:4: provider.api.api_key_file: is missing: https://api.anthropic.com asks for a key"]),
    ("key file that is not there", HEAD + 'api_key_file = "key"\n',
     ["pool.toml:10: provider.api.api_key_file: there is no file key; create it or correct the path"]),
    ("certificates that are none", HEAD + 'ca_file = "pool.toml"\n',
     ["pool.toml:10: provider.api.ca_file: pool.toml holds no certificate"]),
    ("keys of the other kind", HEAD + 'sampling = true\napi_version = "2026-10-21"\n',
     ['pool.toml:10: provider.api.sampling: is read only where kind = "anthropic"',
      'pool.toml:11: provider.api.api_version: is read only where kind = "anthropic"']),
    ("no request at all", HEAD + "in_flight = 0\n",
     ["pool.toml:10: provider.api.in_flight: 0 is too small; write at least 1"]),
    ("no time", HEAD + 'connect_timeout = "0s"\n',
     ["pool.toml:10: provider.api.connect_timeout: is 0, which lets nothing pass"]),
    ("prices without the first", HEAD + '[provider.api.price.x]\noutput = "3"\n',
     ["pool.toml:10: provider.api.price.x.input: is missing: without it none of the prices"]),
    ("price of words", HEAD + '[provider.api.price.x]\ninput = "dear"\n',
     ['pool.toml:11: provider.api.price.x.input: "dear" is not an amount; write US dollars']),
    ("a budget of nothing", HEAD + "[budget]\nnodes = 0\n",
     ["pool.toml:11: budget.nodes: 0 is too small; write at least 1"]),
    ("process keys of a pool", HEAD + '[pool.chat.gateway]\nlisten = "127.0.0.1:1"\nlinger = "1s"\n',
     ["pool.toml:11: pool.chat.gateway.listen: belongs to the gateway's process, which several pools share; "
      "write it in [gateway]",
      "pool.toml:12: pool.chat.gateway.linger: belongs to the gateway's process"]),
    ("a key of the process twice",
     CHAT + '[pool.chat.gateway]\nlisten = "127.0.0.1:1"\n[gateway]\nlisten = "127.0.0.1:2"\n',
     ["pool.toml:5: pool.chat.gateway.listen: stands in [gateway] too; write it once"]),
    ("one targets file", HEAD + '[gateway]\ntargets_file = "t.json"\n',
     ["pool.toml:11: gateway.targets_file: each pool has a file of its own"]),
    ("the same targets file twice",
     HEAD + '[pool.chat.gateway]\ntargets_file = "t"\n[pool.embed.gateway]\ntargets_file = "t"\n',
     ["pool.toml:13: pool.embed.gateway.targets_file: t is the path of pool.chat.gateway.targets_file too"]),
    ("one port of two pools' agents",
     HEAD + '[pool.chat.agents]\nlisten = "127.0.0.1:7"\nsecret_file = "pool.toml"\n'
     '[pool.embed.agents]\nlisten = "127.0.0.1:7"\nsecret_file = "pool.toml"\n',
     ["pool.toml:14: pool.embed.agents.listen: 127.0.0.1:7 cannot be opened beside 127.0.0.1:7 of "
      "pool.chat.agents.listen"]),
    ("a pool's agents on the gateway's port",
     HEAD + '[pool.embed.agents]\nlisten = "127.0.0.1:8000"\nsecret_file = "pool.toml"\n',
     ["pool.toml:11: pool.embed.agents.listen: 127.0.0.1:8000 cannot be opened beside 127.0.0.1:8000 of "
      "gateway.listen"]),
    ("half of a local cloud", HEAD + '[pool.embed.cloud]\nstate_dir = "other"\n',
     ["pool.toml:10: pool.embed.cloud.socket: state/cloud/cloud.sock is that of pool chat too, whose local "
      "cloud is another"]),
    ("two pools of one name", '[pool.a]\nreplicas = 1\n[pool.b]\nreplicas = 1\n',
     ['pool.toml:3: pool.b: pools a and b both serve "simulated", so that name leads to neither']),
    ("nothing at all", "[budget]\nnodes = 3\n", ["pool.toml:1: pool: holds no pool; write one table"]),
    ("a provider that nobody asks, and no pool", API, ["pool.toml:1: pool: holds no pool; write one table"]),
    ("all at once", route('{ pool = "no" }, { provider = "api" }', 'task = "sing"\n'),
     ["pool.toml:13: route[0].task: \"sing\" is not known; write 'chat', 'embed' or 'rerank'"]),
]  # fmt: skip

URLS: list[tuple[str, str]] = [
    ("llm.internal", '"llm.internal" is not an address; write one such as https://api.example.com'),
    ("ftp://llm.internal", '"ftp://llm.internal" is not an address'),
    ("https://", '"https://" is not an address'),
    ("https://[::1", "is not an address ("),
    ("https://a:70000", "is not an address ("),
    ("https://me:planted@a", "holds a user or a password; write them into api_key_file"),
    ("https://a/v1?key=planted", "has a query; write the base address"),
    ("https://a/v1#x", "has a query"),
    ("https://a/v1/chat/completions", 'is the address of one call; write the base address, such as "https://a/v1"'),
    ("https://a/v1/messages/", 'is the address of one call; write the base address, such as "https://a/v1"'),
    ("http://llm.internal/v1", "is not encrypted, and the key and all prompts would cross the network"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_fault(text: str, expected: list[str], short_dir: Path) -> None:
    found = problems(short_dir, text)
    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning), line


@pytest.mark.parametrize(("url", "expected"), URLS)
def test_address_of_a_provider(url: str, expected: str, short_dir: Path) -> None:
    text = CHAT + f'[provider.api]\nkind = "openai"\nusd_per_day = "unlimited"\nurl = "{url}"\n'
    (found,) = problems(short_dir, text)
    assert found.startswith("pool.toml:7: provider.api.url: ")
    assert expected in found
    assert "planted" not in found or "?" in url


@pytest.mark.parametrize(
    "url",
    ["https://a", "https://a/", "https://a/v1", "https://a.b/openai/v1/", "http://127.0.0.1:8080/v1",
     "http://localhost", "http://[::1]:80"],
)  # fmt: skip
def test_addresses_that_are_fine(url: str, short_dir: Path) -> None:
    text = CHAT + f'[provider.api]\nkind = "openai"\nusd_per_day = "unlimited"\nurl = "{url}"\n'
    assert load(short_dir, text).providers["api"].address == url.rstrip("/")


WARNINGS: list[tuple[str, str, list[str]]] = [
    ("nobody without spot",
     '[pool.chat]\nreplicas = 4\nspot_share = "100%"\n[[route]]\nmodels = ["a"]\nto = [{ pool = "chat" }]\n',
     ['pool.toml:6: route[0].to: "a" has no backend that is always there: its pools are all on spot']),
    ("cap of no provider", route('{ pool = "chat" }, { pool = "embed" }', 'usd_per_day = "3"\n'),
     ["pool.toml:7: provider.api: is asked by no route",
      "pool.toml:13: route[0].usd_per_day: bounds what providers cost, and this route has none"]),
    ("header of no session", route('{ provider = "api", model = "x" }', 'session_header = "x-user"\n'),
     ['pool.toml:13: route[0].session_header: is not read unless affinity = "session"']),
    ("price of no model",
     HEAD + '[provider.api.price.gpt]\ninput = 1\n[[route]]\nmodels = ["a"]\n'
     'to = [{ provider = "api", model = "gtp" }]\n',
     ["pool.toml:10: provider.api.price.gpt: no route asks api for \"gpt\" (did you mean 'gtp'?)"]),
    ("cap below one request",
     HEAD + 'usd_per_day = "0.5"\n[provider.api.price.m]\ninput = 3\noutput = 15\ncontext = 200000\n'
     'most_output = 64000\n[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "m" }]\n',
     ['pool.toml:10: provider.api.usd_per_day: a request of the largest size to "m" may cost $1.56, more']),
    ("in the clear",
     CHAT + '[provider.api]\nkind = "openai"\nurl = "http://llm.internal"\nallow_http = true\n'
     'usd_per_day = "unlimited"\n[provider.api.price.m]\ninput = 1\n'
     '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "m" }]\n',
     ["pool.toml:7: provider.api.allow_http: prompts, answers and the key cross the network in the clear"]),
    ("unknown price without a cap",
     CHAT + '[provider.api]\nkind = "openai"\nurl = "https://llm.internal"\nusd_per_day = "unlimited"\n'
     '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "m" }]\n',
     ['pool.toml:4: provider.api: the price of "m" is not known, so it is booked as unknown; write']),
    ("budget below the floors", HEAD.replace(API, "") + "[budget]\nnodes = 2\n",
     ["pool.toml:8: budget.nodes: 2 is below the on-demand floors together, 3 nodes (chat 2, embed 1)"]),
    ("budget without room to replace", HEAD.replace(API, "") + "[budget]\nnodes = 6\n",
     ["pool.toml:8: budget.nodes: 6 is what the pools want and not one more"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [item[1:] for item in WARNINGS], ids=[item[0] for item in WARNINGS]
)
def test_warning(text: str, expected: list[str], short_dir: Path) -> None:
    found = warnings(short_dir, text)
    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning), line


def on_aws(name: str, queue: str = "", target_group: str = "") -> str:
    """A pool on EC2, its queue and target group by name."""
    account = "123456789012"
    group = f"arn:aws:elasticloadbalancing:us-east-1:{account}:targetgroup/{target_group}/0123456789abcdef"
    return (
        f'[pool.{name}]\nreplicas = 4\nmodel = "m/{name}-8b"\nengine.kind = "vllm"\n'
        f'engine.args = ["--max-model-len", "8192"]\n[pool.{name}.limits]\nspend_per_hour = 99\n'
        f'[pool.{name}.cloud]\nkind = "aws"\n'
        f'[pool.{name}.cloud.aws]\ninstance_types = ["g6.xlarge"]\nallow_unknown_types = true\n'
        + (f'target_group = "{group}"\n' if target_group else "")
        + f'[pool.{name}.cloud.aws.regions.us-east-1]\nsubnets = {{ us-east-1a = "subnet-1" }}\n'
        f'launch_template = "node"\nlaunch_template_version = 1\n'
        f'notice_queue = "https://sqs.us-east-1.amazonaws.com/{account}/{queue or name}"\n'
        'on_demand_prices = { "g6.xlarge" = 0.8 }\n'
    )


def test_a_budget_below_what_floors_cost_says_the_figures(short_dir: Path) -> None:
    found = warnings(short_dir, on_aws("a") + on_aws("b") + "[budget]\nspend_per_hour = 3\n")
    assert [text.partition("budget.")[2] for text in found if "budget" in text] == [
        "spend_per_hour: $3.00 an hour is below what the on-demand floors cost together, $3.20 (a $1.60, b "
        "$1.60): pools of low priority stay below their floor; raise it or lower a floor"
    ]


def test_pools_on_ec2_share_neither_queue_nor_target_group(short_dir: Path) -> None:
    found = problems(short_dir, on_aws("a", "q", "one") + on_aws("b", "q", "one"))
    assert [text.partition(": pool.b.cloud.aws.")[2] for text in found] == [
        "target_group: is that of pool a too, and each pool would take the other's nodes out of it; write "
        "one of its own",
        "regions.us-east-1.notice_queue: is that of pool a too, and a message is heard by one reader: "
        "notices would be lost; write a queue of its own",
    ]


def test_a_pool_behind_a_balancer_of_aws_is_no_backend(short_dir: Path) -> None:
    text = on_aws("a", target_group="one") + on_aws("b")
    (found,) = problems(short_dir, text + '[[route]]\nmodels = ["x"]\nto = [{ pool = "a" }]\n')
    assert "pool a is served by a target group of AWS, so its nodes are not the gateway's" in found


def test_a_pool_of_no_nodes_leaves_no_route_with_nothing(short_dir: Path) -> None:
    empty = HEAD.replace("replicas = 4", "replicas = 0")
    routed = empty + '[[route]]\nmodels = ["a"]\nto = [{ pool = "chat" }'
    (found,) = problems(short_dir, routed + "]\n")
    assert found.startswith('pool.toml:2: pool.chat.replicas: is 0, and route[0] "a" has no other backend')
    (found,) = problems(short_dir, empty)
    assert found.startswith("pool.toml:2: pool.chat.replicas: is 0, and no route leads to the pool")
    both = routed + ', { provider = "api", model = "x" }]\n'
    assert warnings(short_dir, both) == [
        'pool.toml:2: pool.chat.replicas: is 0, so requests for "m/chat" itself are answered with 503; add '
        "that name to a route with another backend"
    ]
    assert warnings(short_dir, both.replace('["a"]', '["a", "m/chat"]')) == []


# -- what a file comes to ---------------------------------------------------------------------------


def test_one_pool_has_the_keys_of_the_process_where_it_always_had_them(short_dir: Path) -> None:
    config = load(short_dir, CHAT + '[pool.chat.gateway]\nlisten = "127.0.0.1:1"\nqueue_limit = 7\n')
    assert str(config.gateway.listen) == "127.0.0.1:1"
    assert config.pool.gateway.listen == config.gateway.listen
    assert config.gateway.socket == config.pool.gateway.socket == short_dir / "state/gateway.sock"
    assert config.gateway.spend_file == short_dir / "state/spend.db"


def test_one_pool_may_have_them_in_the_table_of_the_gateway(short_dir: Path) -> None:
    config = load(short_dir, CHAT + '[gateway]\nlisten = "127.0.0.1:1"\nqueue_limit = 7\n')
    assert str(config.pool.gateway.listen) == "127.0.0.1:1"
    assert config.pool.gateway.queue_limit == 7


def test_what_the_gateway_says_holds_for_every_pool_that_says_nothing(short_dir: Path) -> None:
    config = load(
        short_dir,
        HEAD + '[gateway]\nlisten = "127.0.0.1:1"\nqueue_limit = 7\nhealth_path = "/a"\n'
        "[pool.embed.gateway]\nqueue_limit = 0\n",
    )
    chat, embed = (config.pools[name].gateway for name in ("chat", "embed"))
    assert (chat.queue_limit, embed.queue_limit) == (7, 0)
    assert (chat.health_path, embed.health_path) == ("/a", "/a")
    assert chat.socket == embed.socket == config.gateway.socket
    assert str(chat.listen) == "127.0.0.1:1"


def test_each_pool_has_its_targets_and_the_first_keeps_the_usual_file(short_dir: Path) -> None:
    alone = load(short_dir, CHAT)
    both = load(short_dir, HEAD)
    assert alone.pool.gateway.targets_file == short_dir / "state/targets.json"
    assert both.pools["chat"].gateway == alone.pool.gateway
    assert both.pools["embed"].gateway.targets_file == short_dir / "state/targets-embed.json"


def test_pools_of_one_machine_share_its_local_cloud(short_dir: Path) -> None:
    config = load(short_dir, HEAD)
    assert config.pools["chat"].cloud == config.pools["embed"].cloud


def test_a_file_of_providers_alone(short_dir: Path) -> None:
    text = API + '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "x" }]\n'
    config = load(short_dir, text)
    assert not config.pools
    assert [each.name for each in config.routes] == ["a"]
    assert config.warnings == ()


def test_amounts_are_exact(short_dir: Path) -> None:
    text = (
        HEAD + 'usd_per_day = 0.3\n[provider.api.price.x]\ninput = 0.15\noutput = "$0.60"\ncached = 0.075\n'
    )
    api = load(short_dir, text + '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "x" }]\n')
    provider = api.providers["api"]
    assert provider.usd_per_day == Decimal("0.3")
    price = provider.price_of("x", at=0.0)
    assert price is not None
    rates = price.rates
    assert (rates.input, rates.cached, rates.output) == (150_000, 75_000, 600_000)  # picodollars a token
    assert provider.price_of("y", at=0.0) is None


def test_prices_of_long_prompts(short_dir: Path) -> None:
    text = HEAD + (
        "[provider.api.price.x]\ninput = 3\noutput = 15\n"
        "[[provider.api.price.x.tier]]\nabove = 200000\ninput = 6\noutput = 22.5\n"
        '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "x" }]\n'
    )
    price = load(short_dir, text).providers["api"].price_of("x", at=0.0)
    assert price is not None
    assert price.rates_for(200_000).input == 3_000_000
    assert price.rates_for(200_001).input == 6_000_000
    assert price.rates_for(200_001).output == 22_500_000


# -- keys and certificates --------------------------------------------------------------------------


def with_key(file: str) -> str:
    return (
        f'{CHAT}[provider.claude]\nkind = "anthropic"\nusd_per_day = "2"\napi_key_file = "{file}"\n'
        "[provider.claude.price.m]\ninput = 3\noutput = 15\n"
        '[[route]]\nmodels = ["a"]\nto = [{ provider = "claude", model = "m" }]\n'
    )


@pytest.mark.parametrize(
    ("held", "fault"),
    [
        (b"", "is empty; write the key into it"),
        (b" \n", "is empty"),
        (b"sk-1\nsk-2\n", "holds more than a key"),
        (b"export KEY=planted here", "holds more than a key"),
        (b"\xff\xfe", "does not hold a key as text"),
    ],
)
def test_a_file_that_holds_no_key(held: bytes, fault: str, short_dir: Path) -> None:
    (short_dir / "key").write_bytes(held)
    (short_dir / "key").chmod(0o600)
    (found,) = problems(short_dir, with_key("key"))
    assert found.startswith(f"pool.toml:7: provider.claude.api_key_file: key {fault}")
    assert "planted" not in found


def test_a_key_that_others_may_read_is_a_warning(short_dir: Path) -> None:
    (short_dir / "key").write_text("sk-planted\n")
    (short_dir / "key").chmod(0o640)
    assert warnings(short_dir, with_key("key")) == [
        "pool.toml:7: provider.claude.api_key_file: key can be read by other users; close it with chmod 600"
    ]
    (short_dir / "key").chmod(0o600)
    assert warnings(short_dir, with_key("key")) == []


def test_only_the_gateway_needs_the_key_and_serves_the_rest_without(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon runs as a user who must not see it."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    text = with_key("{credentials}/claude-key")
    for role in ("daemon", "client", "any"):
        assert load(short_dir, text, role).providers

    def warned(text: str) -> str:
        (found,) = load(short_dir, text, "gateway").warnings
        assert str(found).endswith("; until it is there, claude is not asked")
        return str(found)

    assert "no service manager gave this process credentials" in warned(text)
    given = short_dir / "given"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert f"there is no file {given}/claude-key" in warned(text)
    (given / "claude-key").write_text("sk-1")
    (given / "claude-key").chmod(0o600)
    found = load(short_dir, text, "gateway")
    assert (found.providers["claude"].api_key_file, found.warnings) == (given / "claude-key", ())
    missing = with_key("missing")
    assert load(short_dir, missing, "daemon").providers
    unnamed = missing.replace('api_key_file = "missing"\n', "")
    assert "asks for a key" in problems(short_dir, unnamed, "gateway")[0], (
        "else it would be asked without one"
    )
    assert f"there is no file {short_dir}/missing" in warned(missing)
    assert "there is no file missing" in problems(short_dir, missing)[0]


def test_a_spend_file_that_the_gateway_cannot_write(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + f'[gateway]\nspend_file = "{short_dir}/kept/spend.db"\n'
    (found,) = problems(short_dir, text, "gateway")
    assert found.startswith("pool.toml:11: gateway.spend_file: kept cannot be written by this user")
    assert load(short_dir, text, "daemon").providers
    (short_dir / "kept").mkdir()
    assert load(short_dir, text, "gateway").providers
    # the superuser, who may run these tests, is allowed everything
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert len(problems(short_dir, text, "gateway")) == 1


def test_certificates_of_a_private_gateway(short_dir: Path) -> None:
    certificate, private = make_certificate(short_dir)
    trusted = load(short_dir, HEAD + f'ca_file = "{certificate.name}"\n').providers["api"].ca_file
    assert trusted == certificate
    (found,) = problems(short_dir, HEAD + f'ca_file = "{private.name}"\n')
    assert f"{private.name} holds no certificate" in found
