"""Prints the bill of materials of the installed program as CycloneDX JSON.

    python tools/package/sbom.py runtime.lock > sbom.cdx.json

What is in it is what the runtime lock pins (tools/package/runtime_lock.py), each with the hashes that the
installation demands, its licence as its own metadata states it, and its package URL. The same lock gives the
same document: no time, no random number. Exit code: 0 printed, 1 the lock cannot be read.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
import uuid
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parents[2]

_ENTRY = re.compile(r"(?m)^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def bill(lock: str) -> Bom:
    """The bill of a lock. Raises ValueError when an entry has no hash."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, lock))
    bom.metadata.component = Component(
        name=project["name"],
        version=project["version"],
        type=ComponentType.APPLICATION,
        bom_ref=project["name"],
        licenses=[DisjunctiveLicense(id=project["license"])],
    )
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the same lock, the same document
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", lock):
        entry = _ENTRY.match(block)
        if entry is not None:
            bom.components.add(_component(entry[1], entry[2], _HASH.findall(block)))
    bom.register_dependency(bom.metadata.component, bom.components)
    return bom


def _component(name: str, version: str, hashes: list[str]) -> Component:
    if not hashes:
        raise ValueError(f"{name}=={version} has no hash in the lock")
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=PackageURL("pypi", name=name.lower(), version=version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in hashes],
        licenses=[DisjunctiveLicense(name=found)] if (found := _licence(name)) else [],
    )


def _licence(name: str) -> str:
    """What the distribution itself says, in one line; empty where it says nothing or is not here."""
    try:
        stated = metadata(name)
    except PackageNotFoundError:
        return ""
    said = stated.get("License-Expression") or stated.get("License") or ""
    classifiers = [
        c.rpartition(" :: ")[2] for c in stated.get_all("Classifier", []) if c.startswith("License")
    ]
    return said.strip() if said.strip() and "\n" not in said.strip() else ", ".join(classifiers)


def main() -> int:
    """Print the bill; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lock", type=Path, help="what tools/package/runtime_lock.py printed")
    arguments = parser.parse_args()
    try:
        bom = bill(arguments.lock.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{arguments.lock}: {error}", file=sys.stderr)
        return 1
    print(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
