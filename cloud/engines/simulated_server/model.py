"""The language model of the simulated engine: a next-token function, pure.

The next token depends on the whole sequence before it and on a seed, on nothing else. So a text that was
cut and goes on from its token ids, on the same server or another, continues with the same tokens.

In a conversation the last message can say what the answer is to be, one line for each part:

    !think N            N tokens of reasoning between its marks; what follows is open
    !say N              N tokens of text
    !call NAME JSON     a call of the tool NAME with these arguments

After a script that ends with text or a call the answer ends. The script is part of the prompt, so an answer
that is continued from its ids goes on with it.

A grammar (`Sequencer(grammar=...)`) is a text that the request forces from its first token on, whatever
stands before: like vLLM's, it starts anew in a continuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from cloud.engines.simulated_server.tokens import (
    ALL_SPECIAL,
    ASSISTANT,
    CALL,
    CALL_END,
    END_OF_TEXT,
    FIRST_WORD,
    START,
    THINK,
    THINK_END,
    WORDS,
    decode,
    encode,
    encode_marked,
)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LEAD_BYTE = 0xC3  # of the two-byte letters U+00C0 to U+00FF
_FIRST_TAIL_BYTE = 0xA0
_TAIL_BYTES = 31
_SPLIT_LETTER_ONE_IN = 24
_FREE = -1  # in a script: any token of text
_MOST_FREE = 100_000  # tokens of one line of a script
_LINE = re.compile(
    r"^!(?:(?P<free>think|say) (?P<count>\d+)|call (?P<name>\S+) (?P<arguments>.+))$", re.MULTILINE
)


def _mix(value: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def script_of(message: str) -> list[int]:
    """The script that a message asks for, as ids with `_FREE` for any token of text; empty for none."""
    script: list[int] = []
    closed = False
    for line in _LINE.finditer(message):
        if line["free"]:
            free = [_FREE] * min(int(line["count"]), _MOST_FREE)
            closed = line["free"] == "say"
            script += free if closed else [THINK, *free, THINK_END]
        else:
            call = f'{{"name": {json.dumps(line["name"])}, "arguments": {line["arguments"]}}}'
            script += [CALL, *encode(f"\n{call}\n"), CALL_END]
            closed = True
    return [*script, END_OF_TEXT] if closed else script


def _rest_of_script(sequence: Sequence[int]) -> list[int]:
    """What is left of the script of the conversation's last message after what the assistant said already."""
    at = _last(sequence, START, len(sequence))
    spoken = at + len(ASSISTANT)
    if at <= 0 or tuple(sequence[at:spoken]) != ASSISTANT:
        return []
    message = sequence[max(_last(sequence, START, at), 0) : at]
    return script_of(decode(message, ALL_SPECIAL))[len(sequence) - spoken :]


def _last(sequence: Sequence[int], token: int, before: int) -> int:
    """Where the token stands last before a position; -1 where it does not."""
    for at in range(before - 1, -1, -1):
        if sequence[at] == token:
            return at
    return -1


class Sequencer:
    """Produces the tokens that follow a prompt, one at a time.

    `mean_length` is the mean number of tokens before the text ends by itself; 0 means never. With `endless`
    it does not end at the end of a script either. `grammar` is a text that is forced.
    """

    __slots__ = ("_end_below", "_endless", "_last", "_plan", "_state")

    def __init__(
        self,
        prompt: Sequence[int],
        seed: int,
        mean_length: int = 0,
        *,
        endless: bool = False,
        grammar: str = "",
    ) -> None:
        self._state = _mix((seed & _MASK) ^ _GOLDEN)
        self._last = -1
        self._endless = endless and not grammar
        self._end_below = (_MASK // mean_length) if mean_length > 0 and not endless else 0
        for token in prompt:
            self._push(token)
        plan = [*encode_marked(grammar), END_OF_TEXT] if grammar else _rest_of_script(prompt)
        self._plan = plan[::-1]

    def _push(self, token: int) -> None:
        self._state = _mix((self._state + token * _GOLDEN + 1) & _MASK)
        self._last = token

    def next(self) -> int:
        """The next token; `END_OF_TEXT` where the text ends by itself."""
        token = self._plan.pop() if self._plan else _FREE
        if token == _FREE or (token == END_OF_TEXT and self._endless):
            token = self._free()
        self._push(token)
        return token

    def _free(self) -> int:
        """A token of text. Its letters are whole where the plan goes on with something else."""
        draw = _mix(self._state ^ 0x5851F42D4C957F2D)
        if self._last == _LEAD_BYTE:
            return _FIRST_TAIL_BYTE + draw % _TAIL_BYTES
        if not self._plan and self._end_below and _mix(draw) < self._end_below:
            return END_OF_TEXT
        if draw % _SPLIT_LETTER_ONE_IN == 0 and (not self._plan or self._plan[-1] == _FREE):
            return _LEAD_BYTE
        return FIRST_WORD + (draw >> 16) % len(WORDS)
