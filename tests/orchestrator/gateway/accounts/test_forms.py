"""Forms that two readers could read in two ways."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from orchestrator.gateway.accounts.forms import unmistakable

KIND = "multipart/form-data; boundary=b"
MODEL = 'Content-Disposition: form-data; name="model"\r\n\r\ntiny'
FILE = (
    'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRI--FF'
)


def form(*parts: str, end: str = "--b--\r\n") -> bytes:
    return "".join([*(f"--b\r\n{part}\r\n" for part in parts), end]).encode()


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain; boundary=b", "audio/wav"])
def test_what_is_no_form_can_be_read_in_one_way(kind: str) -> None:
    assert unmistakable(kind, b"--b\r\n anything")


@pytest.mark.parametrize(
    "body",
    [
        form(MODEL, FILE),
        form(FILE, MODEL),
        form(FILE),
        form(MODEL, FILE, end="--b--"),
        form("Content-Type: text/plain\r\n" + MODEL, FILE),
        form(MODEL, FILE.replace('"a.wav"', "\"a.wav\"; filename*=utf-8''%c3%a4.wav")),
        form(MODEL, FILE.replace("RI--FF", "\r\n\r\n\x00binary\r\n")),
    ],
)
def test_plain_forms(body: bytes) -> None:
    assert unmistakable(KIND, body)
    assert unmistakable('multipart/form-data; boundary="b"', body)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/mixed; boundary=b",
        'multipart/form-data; x="boundary=c"; boundary=b',
        "multipart/form-data; boundary=c; boundary=b",
        "multipart/form-data; boundary=b; charset=utf-16",
        'multipart/form-data; boundary="b',
        "multipart/form-data; boundary=b ",
        " multipart/form-data; boundary=b",
        "Multipart/Form-Data; BOUNDARY=b",
        "multipart/form-data; boundary=b, application/json",
    ],
)
def test_kinds_that_name_no_boundary_for_sure(kind: str) -> None:
    assert not unmistakable(kind, form(MODEL, FILE))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--\r\n",
        form(MODEL, MODEL),
        form(MODEL, MODEL.replace("model", "Model")),
        form(MODEL, FILE, end=""),
        form(MODEL, FILE, end="--b--\r\nmore"),
        b"preamble\r\n" + form(MODEL, FILE),
        form(MODEL, FILE).replace(b"\r\n", b"\n"),
        form(FILE.replace("RI", "RI\n--b\n" + MODEL)),
        form(FILE.replace("RI", "--b")),
        form(MODEL, MODEL.replace('"model"', '"model"; xfilename="a"')),
        form(MODEL, MODEL.replace('name="model"', 'x=";name=a"; name="model"')),
        form(MODEL, MODEL.replace('name="model"', 'name="a"; name="model"')),
        form(MODEL, MODEL.replace('"model"', "model")),
        form(MODEL, MODEL.replace('"model"', '"mo\\del"')),
        form(MODEL, MODEL.replace('"model"', '"%6dodel"')),
        form(MODEL, MODEL.replace("name=", "name*=utf-8''model; name=")),
        form(MODEL, "Content-Disposition: form-data; name=a\r\n" + MODEL),
        form(MODEL, "Content-Disposition: form-data;\r\n name=a\r\n" + MODEL),
        form(MODEL, "Content-Disposition : form-data\r\n" + MODEL),
        form(MODEL, "\r\n\r\nx"),
        form(MODEL, "no head"),
    ],
)
def test_forms_in_which_two_readers_could_find_two_things(body: bytes) -> None:
    assert not unmistakable(KIND, body)


async def test_what_aiohttp_sends_is_plain() -> None:
    made: Any = aiohttp.FormData()
    made.add_field("model", "tiny")
    made.add_field("file", b"RIFF", filename="a.wav", content_type="audio/wav")
    body = made()
    sent = await body.as_bytes()
    assert b"tiny" in sent
    assert unmistakable(body.content_type, sent)
