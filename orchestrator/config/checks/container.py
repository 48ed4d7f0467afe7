"""A pool's container: an image that says which it is, volumes, flags that would break what starts it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from cloud.engines.images import IMAGES
from cloud.node_container import RUNTIMES
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown

Found = tuple[tuple[str, ...], str]  # key path, sentence

_KEYS: Final = ("image", "container_args", "volumes", "runtime")
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST: Final = r"(?:[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)"
_IMAGE: Final = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?P<tag>:\w[\w.-]{{0,127}})?(?P<digest>@sha256:[0-9a-f]{{64}})?"
)
"""A reference to an image, by the grammar of the distribution project (reference.go)."""

_VOLUME: Final = re.compile(r"(?P<source>/[^:]*|\w[\w.-]*):(?P<target>/[^:]*)(?::[a-zA-Z,]+)?")
_HERE: Final = "the container is started in one way, so that signals and output pass; leave it out"
_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "--name": "the container has its node's name, by which it is found again; leave it out",
        "--rm": "it is removed in any case; leave it out",
        "--restart": "an engine that ends is started by its node; leave it out",
        "--pull": "an image that is not there is fetched, before the start; leave it out",
        "--network": "it has the network of its node, where the gateway finds it; leave it out",
        "--net": "it has the network of its node, where the gateway finds it; leave it out",
        "--publish": "it has the network of its node, and needs no ports opened; leave it out",
        "-p": "it has the network of its node, and needs no ports opened; leave it out",
        "--env": "everybody on the node could read its value; write it into engine.env",
        "-e": "everybody on the node could read its value; write it into engine.env",
        "--detach": _HERE,
        "-d": _HERE,
        "--interactive": _HERE,
        "-i": _HERE,
        "--tty": _HERE,
        "-t": _HERE,
        "-it": _HERE,
        "--sig-proxy": _HERE,
    }
)


def container_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What keeps a container from starting, or from being what is meant. `at` ends with the pool's name."""
    there, engine = (*at, "engine"), pool.engine
    if engine.run == "process":
        for key in _KEYS:
            if getattr(engine, key):
                yield (*there, key), 'is for containers alone; write run = "container", or leave it out'
        return
    if engine.executable:
        yield (
            (*there, "executable"),
            "is a program of the node, and the container's image has its own; leave it out",
        )
    yield from _image_errors(there, pool)
    yield from _flag_errors((*there, "container_args"), engine.container_args)
    targets = _targets(engine.volumes)
    for number, volume in enumerate(engine.volumes):
        target = targets[number]
        if target is None:
            yield (
                (*there, "volumes"),
                f"{shown(volume)} is no volume; write SOURCE:TARGET, such as /srv:/srv:ro",
            )
        elif target in targets[:number]:
            yield (*there, "volumes"), f"{target} stands there twice; one place has one volume"
    model = "" if pool.cloud.weights_aside() else pool.model
    if model.startswith("/") and not any(PurePosixPath(model).is_relative_to(one) for one in targets if one):
        yield (
            (*at, "model"),
            f"{model} is a path in the container, and no volume brings it there; write "
            f'engine.volumes = ["{model}:{model}:ro"]',
        )


def _image_errors(there: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    image, known = pool.engine.image, IMAGES[pool.engine.kind].name
    if not image:
        yield (
            (*there, "image"),
            f'is missing; write one with its tag or digest, such as "{known}" of its registry',
        )
        return
    found = _IMAGE.fullmatch(image)
    if found is None:
        yield (
            (*there, "image"),
            f"{shown(image)} is no image's name; write REGISTRY/NAME:TAG, in small letters",
        )
    elif not found["tag"] and not found["digest"]:
        yield (*there, "image"), f'has no tag, so its version is unknown; write "{image}:TAG"'


def _flag_errors(key: tuple[str, ...], args: Sequence[str]) -> Iterator[Found]:
    if args and not args[0].startswith("-"):
        yield key, f"{shown(args[0])} is no flag, and would be taken for the image; begin with a flag"
    for word in args:
        flag = word.partition("=")[0]
        if flag in _FLAGS:
            yield key, f"{flag}: {_FLAGS[flag]}"
        elif re.match(r"-[ep][^-]", word):  # a short flag with its value
            yield key, f"{word[:2]}: {_FLAGS[word[:2]]}"


def _targets(volumes: Sequence[str]) -> list[PurePosixPath | None]:
    """Where each volume is in the container; None for what is none."""
    found = (_VOLUME.fullmatch(volume) for volume in volumes)
    return [None if each is None else PurePosixPath(each["target"]) for each in found]


def container_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What may surprise of a container, or on this machine, where nodes of a local cloud run."""
    there, engine = (*at, "engine"), pool.engine
    if engine.run == "process":
        return
    found = _IMAGE.fullmatch(engine.image)
    if found is not None and found["tag"] == ":latest" and not found["digest"]:
        yield (
            (*there, "image"),
            "latest is another image from day to day, and nodes would differ; write a version or a digest",
        )
    names = (engine.runtime,) if engine.runtime else RUNTIMES
    if pool.cloud.here and not any(map(shutil.which, names)):
        yield (
            (*there, "runtime"),
            f"{' and '.join(names)}: not on the PATH, and the nodes of a local cloud run on this machine; "
            "install one",
        )
