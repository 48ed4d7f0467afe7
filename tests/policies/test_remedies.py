"""Words of a provider and of a machine lead to what can be done, and to nothing else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import remedies
from policies.model import Market
from policies.remedies import remedy

SPOT, ON_DEMAND = ("eu-west-1", Market.SPOT), ("eu-west-1", Market.ON_DEMAND)
SLOW = "not ready 900 s after its start: connection refused"


def test_a_key_that_may_not_be_used_is_granted_to_whoever_launches() -> None:
    spot, on_demand = (remedy("Client.InternalError: Client error on launch", *p) for p in (SPOT, ON_DEMAND))
    assert spot.commands == on_demand.commands == ("orchestrator aws policy CONFIG --kms KEY-ARN",)
    assert "service-linked role" in spot.text
    assert "daemon's role" in on_demand.text


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("Client.VolumeLimitExceeded: Volume limit exceeded", "quota of EBS"),
        ("Client.InvalidSnapshot.NotFound: The snapshot 'snap-1' does not exist.", "not shared"),
        ("Client.InstanceInitiatedShutdown: Instance initiated shutdown", "switched itself off"),
        ("Server.InternalError: Internal error on launch", "EC2's own"),
        ("The KMS key provided is in an incorrect state", "enabled"),
    ],
)
def test_the_words_of_the_provider_say_what_to_do(why, words):
    assert words in remedy(why, *SPOT).text


@pytest.mark.parametrize(
    ("console", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "disk.size"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "--max-model-len"),
        ("ValueError: Cannot find the config file for awq", "--quantization"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error", "token"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", "compiler"),
        ("RuntimeError: Found no NVIDIA driver on your system", "driver"),
        ("Out of memory: Killed process 812 (vllm)", "main memory"),
        ("container: failed: image r/x:1: there is none; correct engine.image (manifest unknown)", "correct"),
        ("node-start: failed: image r/x:1: the registry refuses it; log in on the node (x)", "log in there"),
        ("node-start: failed: image r/x:1: the registry does not answer (EOF)", "their way there"),
        ("failed: image r/x:1: the disk is full; give a larger one (no space left on device)", "disk.size"),
        ("node-start: image: r/x:1 is fetched\nnode-start: image: r/x:1: Copying blob 1", "boot_timeout"),
        ("node-start: image: r/x:1 is fetched\nnode-start: start: podman starts", "may not reach it"),
        ("all is well", "this host may not reach it"),
    ],
)
def test_what_a_machine_wrote_says_why_it_was_not_ready(console, words):
    assert words in remedy(SLOW, *SPOT, console).text


def test_the_provider_is_believed_before_the_machine() -> None:
    found = remedy("Client.VolumeLimitExceeded: x", *SPOT, "CUDA out of memory")
    assert "EBS" in found.text


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert remedy("gone", *SPOT, "x") is None


@given(st.text(max_size=300), st.text(max_size=300))
def test_nothing_that_a_machine_wrote_is_in_what_is_shown(why, console):
    """Only the fixed sentences are; braces and words of the text change nothing in them."""
    known = [found for _, found in (*remedies._BY_REASON, *remedies._BY_CONSOLE)]
    texts = {found.text for found in known} | {remedies._SLOW.text}
    shown = remedy(why + "{region}", *SPOT, console)
    assert shown is None or any(
        re.fullmatch(re.sub(r"\\{\w+\\}", ".*", re.escape(text)), shown.text) for text in texts
    )


def test_every_remedy_can_be_filled_in() -> None:
    for market in (SPOT, ON_DEMAND):
        for _, found in (*remedies._BY_REASON, *remedies._BY_CONSOLE):
            filled = remedies._filled(found, *market)
            assert not re.search(r"[{}]", filled.text + "".join(filled.commands))
