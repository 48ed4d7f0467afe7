"""The code blocks of the documentation: where they are, what is in them, and whether a test plays them.

A `sh` block of the README, the tutorial and the how-tos is played by tests/system/test_documented.py as it
stands. One that cannot be played has its reason above it: `<!-- not run: needs an AWS account -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SKIPPED = {
    ".venv",
    ".venv-vllm",
    ".venv-balancers",
    ".venv-clients",
    ".git",
    ".cache",
    "node_modules",
    "build",
    "dist",
}
PAGES = sorted(f for f in ROOT.rglob("*.md") if not set(f.relative_to(ROOT).parts) & _SKIPPED)

_FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
_NOT_RUN = re.compile(r"<!-- not run: ([^>]+) -->\n+\Z")
_ENDS = frozenset("\n;|&()")
_BEFORE_A_COMMAND = {
    "then",
    "do",
    "until",
    "while",
    "if",
    "elif",
    "else",
    "!",
    "{",
    "time",
    "sudo",
    "nohup",
    "exec",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One code block; `line` is that of its first line, `not_run` why no test plays it, empty if one may."""

    page: Path
    line: int
    language: str
    body: str
    not_run: str

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every code block of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        mark = _NOT_RUN.search(text[: fence.start()])
        line = text.count("\n", 0, fence.start()) + 2
        found.append(Block(page, line, fence[1], fence[2], mark[1] if mark else ""))
    return found


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def script(page: Path, beginning: str) -> str:
    """What a reader of a page types, as one script in which every command is on the page's own line.

    `beginning` is one line and takes the place of the title.
    """
    lines = [beginning] + [""] * page.read_text(encoding="utf-8").count("\n")
    for block in blocks(page):
        if block.language == "sh" and not block.not_run:
            body = block.body.splitlines()
            lines[block.line - 1 : block.line - 1 + len(body)] = body
    return "\n".join(lines) + "\n"


def commands(shell: str) -> Iterator[list[str]]:
    """The words after `orchestrator` for every call of it in shell text, also within pipes and $(...)."""
    text = re.sub(r"(?ms)<<'?(\w+)'?(.*?)\n.*?^\1$", r"\2", shell)  # what is written into files
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    text = re.sub(r"\d?>>?(&\d|\s*[^\s;|&)]+)", " ", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="\n;|&()")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    calling: list[str] | None = None
    before = "\n"
    for word in lexer:
        if set(word) <= _ENDS:
            if calling is not None:
                yield calling
            calling = None
        elif calling is not None:
            calling.append(word)
        elif _is_orchestrator(word) and (set(before) <= _ENDS or before in _BEFORE_A_COMMAND):
            calling = []
        if "$(" in word:
            yield from commands(word.partition("$(")[2].rpartition(")")[0])
        before = word
    if calling is not None:
        yield calling


def _is_orchestrator(word: str) -> bool:
    return word == "orchestrator" or word.endswith("bin/orchestrator")
