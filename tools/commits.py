"""What tools ask git of this repository: which commit a name is, and what its files were."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class NoCommit(Exception):
    """A commit, or what is wanted of it, cannot be had. The message says why, and what to do."""


def git(*words: str) -> bytes:
    """What git says in this repository. Raises NoCommit."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False)
    if done.returncode:
        raise NoCommit(done.stderr.decode(errors="replace").strip() or f"git {words[0]} failed")
    return done.stdout


def commit_of(name: str) -> str:
    """The full name of a commit. Raises NoCommit."""
    known = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    try:
        return git(*known).decode().strip()
    except NoCommit as error:
        text = f"{name}: no such commit here; a shallow clone lacks old ones: git fetch --unshallow"
        raise NoCommit(text) from error


def archive(commit: str, *paths: str) -> tarfile.TarFile:
    """Files and folders of a commit. Raises NoCommit."""
    try:
        packed = git("archive", "--format=tar", commit, "--", *paths)
    except NoCommit as error:
        raise NoCommit(f"{commit[:12]} has no {', '.join(paths)}: {error}") from error
    return tarfile.open(fileobj=io.BytesIO(packed))


def this_tree(*paths: str) -> str:
    """What this tree is, in words, as far as these paths go."""
    head = git("rev-parse", "--short=12", "HEAD").decode().strip()
    changed = git("status", "--porcelain", "--", *paths).strip()
    return f"{head} with changes that are not committed" if changed else head
