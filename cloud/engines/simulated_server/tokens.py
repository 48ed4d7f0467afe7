"""The language model of the simulated engine: a tokenizer and a next-token function, both pure.

The next token depends on the whole sequence before it and on a seed, on nothing else. So a text that was cut
and goes on from its token ids, on the same server or another, continues with the same tokens.

Ids: 0-255 are single bytes, 256-65791 pairs of bytes, and from 65792 on words with a leading blank. Prompts
become pairs and bytes (about half a token per letter); generated text is words, with now and then a
two-byte letter split over two tokens, since real tokenizers do that too.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_PAIR = 256
_FIRST_WORD = _FIRST_PAIR + 256 * 256
_LEAD_BYTE = 0xC3  # of the two-byte letters U+00C0 to U+00FF
_FIRST_TAIL_BYTE = 0xA0
_TAIL_BYTES = 31
_SPLIT_LETTER_ONE_IN = 24

_TEXT = """
a about after again air all along also always am an and answer any are around as ask at away back be
because been before began below between big book both boy but by call came can carry change children
city close cold come could country cut day did different do does done door down draw dry each earth ease
east eat end enough even ever every eye face fact fall family far farm fast father feet few field figure
find fire first fish five follow food for form found four friend from full game gave get girl give go
gold good got great green ground group grow had half hand hard has have he head hear help her here high
him his hold home horse hot hour house how idea if in is it just keep kind king knew know land large
last late laugh lead learn leave left less let letter life light like line list listen little live long
look love low machine made make man many map mark may me mean measure men might mile mind minute moon
more morning most mother mountain move much music must my name near need never new next night no north
note notice now number of off often old on once one only open or order other our out over own page paper
part pass pattern people perhaps piece place plain plan plant play point power press problem pull put
question quick rain ran reach read ready real red rest right river road rock room round rule run said
same saw say school sea second see seem self sentence set several she ship short should show side simple
since sing size sky sleep slow small snow so some song soon sound south special spell stand star start
state stay step still stood stop story street strong study such sun sure surface table take talk teach
tell ten than that the their them then there these they thing think this those thought thousand three
through time to together told too took top toward town travel tree true try turn two under unit until up
us use usual very voice vowel walk want war warm was watch water way we week weight well went were west
what wheel when where which while white who whole why will wind with wonder wood word work world would
write year yes you young your
"""
_WORDS = tuple(_TEXT.split())

VOCABULARY_SIZE = _FIRST_WORD + len(_WORDS)
"""Ids at or above this number are unknown."""

END_OF_TEXT = 0
"""The id that ends a text; it decodes to nothing."""


def _mix(value: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a prompt."""
    data = text.encode("utf-8", errors="replace")
    even = len(data) & ~1
    ids = [_FIRST_PAIR + (data[i] << 8) + data[i + 1] for i in range(0, even, 2)]
    if even < len(data):
        ids.append(data[-1])
    return tuple(ids)


def piece(token: int) -> bytes:
    """The bytes that one id stands for."""
    if token == END_OF_TEXT:
        return b""
    if token < _FIRST_PAIR:
        return bytes((token,))
    if token < _FIRST_WORD:
        return bytes(divmod(token - _FIRST_PAIR, 256))
    return b" " + _WORDS[token - _FIRST_WORD].encode("ascii")


def chat_prompt(messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Token ids of a conversation, (role, content) each, up to where the assistant speaks."""
    turns = "".join(f"<|start|>{role}\n{content}<|end|>\n" for role, content in messages)
    return encode(f"{turns}<|start|>assistant\n")


class Sequencer:
    """Produces the tokens that follow a prompt, one at a time.

    `mean_length` is the mean number of tokens before the text ends by itself; 0 means never.
    """

    __slots__ = ("_end_below", "_last", "_state")

    def __init__(self, prompt: Sequence[int], seed: int, mean_length: int = 0) -> None:
        self._state = _mix((seed & _MASK) ^ _GOLDEN)
        self._last = -1
        self._end_below = (_MASK // mean_length) if mean_length > 0 else 0
        for token in prompt:
            self._push(token)

    def _push(self, token: int) -> None:
        self._state = _mix((self._state + token * _GOLDEN + 1) & _MASK)
        self._last = token

    def next(self) -> int:
        """The next token; `END_OF_TEXT` where the text ends by itself."""
        draw = _mix(self._state ^ 0x5851F42D4C957F2D)
        if self._last == _LEAD_BYTE:
            token = _FIRST_TAIL_BYTE + draw % _TAIL_BYTES
        elif self._end_below and _mix(draw) < self._end_below:
            token = END_OF_TEXT
        elif draw % _SPLIT_LETTER_ONE_IN == 0:
            token = _LEAD_BYTE
        else:
            token = _FIRST_WORD + (draw >> 16) % len(_WORDS)
        self._push(token)
        return token


class TextStream:
    """Turns generated ids into text as they come: holds back half characters and half stop strings.

    A text that starts in the middle of a character loses those bytes, as it does in vLLM.
    """

    __slots__ = ("_decoder", "_held", "_hold", "_stops", "matched")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stops = tuple(stop for stop in stops if stop)
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self.matched: str | None = None

    def feed(self, token: int) -> str:
        """Text that is certain once this id is known. `matched` is set when a stop string is complete."""
        text = self._held + self._decoder.decode(piece(token))
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found)
            self._held = ""
            return text[:at]
        cut = len(text) - self._hold if self._hold else len(text)
        cut = max(cut, 0)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back, once no stop string can complete any more."""
        text, self._held = self._held, ""
        return text
