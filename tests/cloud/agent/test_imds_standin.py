"""The stand-in for the metadata service keeps IMDSv2's contract: everything else here leans on it."""

import json
import urllib.error
import urllib.request

import pytest

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
ACTION = "meta-data/spot/instance-action"


def ask(url, path, method="GET", **headers):
    request = urllib.request.Request(f"{url}/{path}", method=method, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def token(node, lifetime="60"):
    return ask(node.url, "latest/api/token", "PUT", **{TTL: lifetime})[1]


@pytest.mark.parametrize(
    ("headers", "path", "code"),
    [
        ({TTL: "21600"}, "latest/api/token", 200),
        ({TTL: "1"}, "latest/api/token", 200),
        ({}, "latest/api/token", 400),
        ({TTL: "0"}, "latest/api/token", 400),
        ({TTL: "21601"}, "latest/api/token", 400),
        ({TTL: "soon"}, "latest/api/token", 400),
        ({TTL: "60", "X-Forwarded-For": "192.0.2.1"}, "latest/api/token", 403),
        ({TTL: "60"}, "2021-03-23/api/token", 403),
    ],
)
def test_tokens_are_given_on_the_exact_terms(machine, headers, path, code):
    status, text, answered = ask(machine().url, path, "PUT", **headers)
    assert status == code
    if code == 200:
        assert answered[TTL] == headers[TTL]
        assert answered["Content-Type"] == "text/plain"
    else:
        assert f"<h1>{code} - " in text


def test_a_token_is_needed_unless_the_node_says_otherwise(machine):
    node = machine()
    path = "latest/meta-data/instance-id"
    assert ask(node.url, path)[0] == 401
    assert ask(node.url, path, **{TOKEN: "wrong"})[0] == 401
    good = token(node)
    assert ask(node.url, path, **{TOKEN: good})[:2] == (200, node.id)
    node.order("expire")
    assert ask(node.url, path, **{TOKEN: good})[0] == 401
    node.order("set", required=False)
    assert ask(node.url, path)[:2] == (200, node.id)
    assert ask(node.url, path, **{TOKEN: "wrong"})[0] == 401
    node.order("set", enabled=False)
    assert ask(node.url, path)[0] == 403
    assert ask(node.url, "latest/api/token", "PUT", **{TTL: "60"})[0] == 403


def test_a_token_is_good_on_its_own_node_only(machine):
    good = token(machine())
    assert ask(machine().url, "latest/meta-data/instance-id", **{TOKEN: good})[0] == 401


def test_documents_appear_when_something_happens(machine):
    node = machine()
    headers = {TOKEN: token(node)}
    status, text, answered = ask(node.url, f"latest/{ACTION}", **headers)
    assert (status, answered["Content-Type"]) == (404, "text/html")
    assert "<title>404 - Not Found</title>" in text
    assert ask(node.url, "latest/meta-data/events/maintenance/scheduled", **headers)[1] == "[]"
    node.order("interrupt", after=120, action="terminate")
    node.order("recommend")
    action = json.loads(ask(node.url, f"latest/{ACTION}", **headers)[1])
    assert action["action"] == "terminate"
    assert action["time"].endswith("Z")
    assert ask(node.url, "latest/meta-data/spot/termination-time", **headers)[1] == action["time"]
    assert "noticeTime" in ask(node.url, "latest/meta-data/events/recommendations/rebalance", **headers)[1]


def test_directories_list_their_children(machine):
    node = machine()
    headers = {TOKEN: token(node)}
    listed = ask(node.url, "latest/meta-data/", **headers)[1].split("\n")
    assert "instance-id" in listed
    assert "placement/" in listed
    assert "spot/" not in listed
    assert ask(node.url, "latest/meta-data/placement/", **headers)[1].split("\n") == [
        "availability-zone",
        "region",
    ]


def test_the_fetcher_of_botocore_reads_it(machine, monkeypatch):
    utils = pytest.importorskip("botocore.utils")
    node = machine(zone="eu-central-1b")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    fetcher = utils.InstanceMetadataRegionFetcher(
        timeout=30, num_attempts=1, config={"ec2_metadata_service_endpoint": node.url}
    )
    assert fetcher.retrieve_region() == "eu-central-1"
