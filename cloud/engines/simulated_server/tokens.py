"""The tokenizer of the simulated engine: ids to bytes and text, and back. All of it is pure.

Ids: 0 ends a text, 1-255 are single bytes, 256-65791 pairs of bytes, from 65792 on words with a leading
blank, and last the marks. Prompts become pairs and bytes (about half a token per letter); generated text is
words, with now and then a two-byte letter split over two tokens, since real tokenizers do that too.

`END_OF_TEXT` and the mark `START` are special: a text does not show them, unless who decodes wants them. The
other marks (`THINK`, `CALL` and their ends) are text to clients without a parser for them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence

_FIRST_PAIR = 256

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
WORDS = tuple(f" {word}" for word in _TEXT.split())
_WORD_BYTES = tuple(word.encode("ascii") for word in WORDS)
FIRST_WORD = _FIRST_PAIR + 256 * 256
"""The id of the first of `WORDS`."""

END_OF_TEXT = 0
"""The special id that ends a text."""
START = FIRST_WORD + len(WORDS)
"""The special id that begins a turn of a conversation."""
THINK, THINK_END, CALL, CALL_END = range(START + 1, START + 5)
VOCABULARY_SIZE = CALL_END + 1
"""Ids at or above this number are unknown."""

SPECIAL = {END_OF_TEXT: "<|end|>", START: "<|start|>"}
"""How the special ids are written where they are shown."""
ALL_SPECIAL = frozenset(SPECIAL)
_MARKS = {THINK: "<think>", THINK_END: "</think>", CALL: "<tool_call>", CALL_END: "</tool_call>"}
_MARK_IDS = {text: token for token, text in _MARKS.items()}
_MARKED = re.compile("(" + "|".join(map(re.escape, _MARK_IDS)) + ")")


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text; none of them is a mark, whatever the text says."""
    data = text.encode("utf-8", errors="replace")
    even = len(data) & ~1
    ids = [_FIRST_PAIR + (data[i] << 8) + data[i + 1] for i in range(0, even, 2)]
    if even < len(data):
        ids.append(data[-1])
    return tuple(ids)


def encode_marked(text: str) -> tuple[int, ...]:
    """Token ids of a text that a model wrote: its marks of thoughts and calls become their ids."""
    ids: list[int] = []
    for part in _MARKED.split(text):
        ids += (_MARK_IDS[part],) if part in _MARK_IDS else encode(part)
    return tuple(ids)


ASSISTANT = (START, *encode("assistant\n"))
"""What a conversation ends with where the assistant is to speak."""


def piece(token: int, hidden: Collection[int] = ALL_SPECIAL) -> bytes:
    """The bytes that one id stands for; none for a hidden id."""
    if token in SPECIAL:
        return b"" if token in hidden else SPECIAL[token].encode()
    if token < _FIRST_PAIR:
        return bytes((token,))
    if token < FIRST_WORD:
        return bytes(divmod(token - _FIRST_PAIR, 256))
    if token < START:
        return _WORD_BYTES[token - FIRST_WORD]
    return _MARKS[token].encode()


def decode(tokens: Sequence[int], hidden: Collection[int] = ()) -> str:
    """The text of some ids; bytes that are no text become replacement characters."""
    return b"".join(piece(token, hidden) for token in tokens).decode("utf-8", errors="replace")


def chat_prompt(
    messages: Sequence[tuple[str, str]], tools: str = "", *, speak: bool = True
) -> tuple[int, ...]:
    """Token ids of a conversation, (role, content) each, up to where the assistant speaks.

    `tools` is the description of the tools, if any; without `speak` the conversation ends with its last turn.
    """
    turns = [("system", f"# Tools\n{tools}"), *messages] if tools else messages
    ids: list[int] = []
    for role, content in turns:
        ids += (START, *encode(f"{role}\n{content}"), END_OF_TEXT)
    return (*ids, *(ASSISTANT if speak else ()))


class TextStream:
    """Turns generated ids into text as they come: holds back half characters and half stop strings.

    A text that starts in the middle of a character loses those bytes, as it does in vLLM. `pending` are the
    bytes of a character that has begun, as another stream left them; `hidden` the ids that are not shown.
    With `included` a stop string is part of the text, and nothing is held back for it.
    """

    __slots__ = ("_decoder", "_given", "_held", "_hidden", "_hold", "_included", "_mid", "_stops", "matched")

    def __init__(
        self,
        stops: Sequence[str] = (),
        *,
        included: bool = False,
        hidden: Collection[int] = ALL_SPECIAL,
        pending: bytes = b"",
    ) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._decoder.decode(pending)
        self._mid = bool(pending)
        self._hidden = hidden
        self._stops = tuple(stop for stop in stops if stop)
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._included = included
        self._held = ""
        self._given = 0  # characters of what is held that were shown
        self.matched: str | None = None

    def feed(self, token: int) -> str:
        """Text that is certain once this id is known. `matched` is set when a stop string is complete."""
        if token >= FIRST_WORD and token < START and not self._mid:
            text = WORDS[token - FIRST_WORD]
        else:
            text = self._decoder.decode(piece(token, self._hidden))
            self._mid = bool(self._decoder.getstate()[0])
        if not self._stops:
            return text
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found)
            given, self._held, self._given = self._given, "", 0
            return text[given : at + len(self.matched) if self._included else at]
        cut = max(len(text) - self._hold, 0)
        self._held = text[cut:]
        if not self._included:
            return text[:cut]
        given, self._given = self._given, len(self._held)
        return text[given:]

    def finish(self) -> str:
        """What was held back, once no stop string can complete any more."""
        text, self._held = self._held[self._given :], ""
        return text

    @property
    def pending(self) -> bytes:
        """The bytes of a character that has begun and is not whole."""
        return self._decoder.getstate()[0]
