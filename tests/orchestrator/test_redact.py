"""What is taken out of texts and values that others may read, and what stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.redact import HIDDEN, Redactor


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("HF_TOKEN=hf_abcdef", f"HF_TOKEN={HIDDEN}"),
        ('{"api_key": "k-123456"}', f'{{"api_key": "{HIDDEN}"}}'),
        ("AWS_SECRET_ACCESS_KEY=abc/def+1 next", f"AWS_SECRET_ACCESS_KEY={HIDDEN} next"),
        ("vllm serve m --api-key sk-1 --port 1", f"vllm serve m --api-key {HIDDEN} --port 1"),
        ("vllm serve m --hf-token=hf_1", f"vllm serve m --hf-token={HIDDEN}"),
        ("Authorization: Bearer abc.def", f"Authorization: {HIDDEN} {HIDDEN}"),
        ("sent 'Bearer abc.def-1'", f"sent 'Bearer {HIDDEN}'"),
        ("postgresql://me:pa55@db:5432/x", f"postgresql://me:{HIDDEN}@db:5432/x"),
        ("key AKIAIOSFODNN7EXAMPLE used", f"key {HIDDEN} used"),
        ("shown sk-orch-Ab3_-d0123456789 by", f"shown {HIDDEN} by"),
        ('"sk-ant-api03-0123456789abcdef"', f'"{HIDDEN}"'),
        ("x-api-key: k-1", f"x-api-key: {HIDDEN}"),
        ("password: 'a b c'", f"password: '{HIDDEN}'"),
    ],
)
def test_what_is_hidden(text: str, left: str) -> None:
    assert Redactor().text(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "token=llama/3/17/1",
        'first_token_timeout = "60s"',
        "orchestrator_tokens_total 12",
        'api_key_file = "/etc/orchestrator/key"',
        "max_num_batched_tokens: 8192",
        "http://127.0.0.1:8000/v1",
        'api_key = ""',
        "disk-orchestrator-of-many-nodes and task-0123456789abcdef",
        'keys_file = "/var/lib/keys.toml"',
    ],
)
def test_what_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_values_are_hidden_by_their_name() -> None:
    found = Redactor().value(
        {
            "env": {"HF_TOKEN": "hf_1", "HF_HUB_OFFLINE": "1"},
            "args": ["--dtype", "auto", "--api-key", "sk-1"],
            "api_key_file": "/etc/key",
            "replicas": 4,
            "store": "postgresql://me:pa55@db/x",
        }
    )
    assert found == {
        "env": {"HF_TOKEN": HIDDEN, "HF_HUB_OFFLINE": "1"},
        "args": ["--dtype", "auto", "--api-key", HIDDEN],
        "api_key_file": "/etc/key",
        "replicas": 4,
        "store": f"postgresql://me:{HIDDEN}@db/x",
    }


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_known_secret_is_found_anywhere(before: str, after: str) -> None:
    assert "s3cr3t-v4lue" not in Redactor(["s3cr3t-v4lue", "x"]).text(before + "s3cr3t-v4lue" + after)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["a" * 2**18, "a." * 2**17, "[" + "a." * 2**17 + "a]\n"])
def test_a_long_line_is_no_wait(text: str) -> None:
    """A file that is no configuration is looked through as well, for a support bundle."""
    assert Redactor().text(text) == text
