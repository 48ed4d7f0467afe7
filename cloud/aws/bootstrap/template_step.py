"""The launch template. A new version is made only where no version has the content that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloud.aws.bootstrap import template
from cloud.aws.bootstrap.site import Site
from cloud.aws.bootstrap.wanted import Change, Difference, Verb, changed, not_ours, refused
from cloud.aws.clients import Answer, Lane
from cloud.aws.disks import devices, misfit
from cloud.aws.tags import by_key, listed


@dataclass(slots=True)
class _Found:
    """The template as it is: its id, empty where there is none, its tags, its versions from the newest on."""

    id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    versions: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def newest(self) -> Mapping[str, Any]:
        """The content of the newest version."""
        return self.versions[0][1] if self.versions else {}


class TemplateStep:
    """The launch template. See `cloud.aws.bootstrap.template` for what of it is ours."""

    kind = "launch template"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._found = _Found()
        self._gone: frozenset[str] = frozenset()
        self._image: Mapping[str, Any] = {}

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        name = wanted.template
        if why := self._impossible():
            return refused(wanted, self.kind, name, why)
        found = self._found = await self._read(name)
        if found.id and not wanted.owns(found.tags):
            return not_ours(wanted, self.kind, name)
        if why := await self._look_at_images(str(found.newest.get("ImageId", "")) or wanted.image):
            return refused(wanted, self.kind, name, f"the image {wanted.image}: {why}")
        ours, content = self._contents()
        if not found.id:
            return self._new(template.differences({}, content))
        tags, kept = wanted.tag_differences(found.tags), template.kept(content, ours)
        for number, held in found.versions:
            if template.same(held, content):
                site.version = number
                return changed(wanted, self.kind, name, tags, f"version {number}", kept)
        differences = template.differences(found.newest, content)
        return changed(wanted, self.kind, name, [*differences, *tags], "a new version", kept)

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        given = {"LaunchTemplateName": wanted.template, "LaunchTemplateData": self._contents()[1]}
        if not self._found.id:
            tags = [{"ResourceType": "launch-template", "Tags": listed(wanted.tags)}]
            await site.call("ec2", "create_launch_template", TagSpecifications=tags, **given)
            site.version = 1
            return
        if site.version is None:
            made = await site.call("ec2", "create_launch_template_version", **given)
            site.version = int(made["LaunchTemplateVersion"]["VersionNumber"])
        await site.tag(self._found.id)

    def _contents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is ours, and what the version holds with what is kept. The security group may only just have
        been made."""
        ours = template.managed(self._site.wanted, self._site.groups, self._image)
        return ours, template.merged(self._found.newest, ours, self._gone)

    async def _read(self, name: str) -> _Found:
        site = self._site
        answer = await site.found("ec2", "describe_launch_templates", LaunchTemplateNames=[name])
        if answer is None or not answer["LaunchTemplates"]:
            return _Found()
        described: Answer = answer["LaunchTemplates"][0]
        versions = []
        async for page in site.clients.pages(
            Lane.LIST, "ec2", "describe_launch_template_versions", LaunchTemplateName=name
        ):
            versions += page["LaunchTemplateVersions"]
        held = [(int(version["VersionNumber"]), version["LaunchTemplateData"]) for version in versions]
        return _Found(
            id=described["LaunchTemplateId"],
            tags=by_key(described.get("Tags", ())),
            versions=sorted(held, key=lambda entry: -entry[0]),
        )

    async def _look_at_images(self, before: str) -> str:
        """Read the image, and the one `before` it: its devices go with it. Returns why the image will not do,
        empty when it will."""
        wanted = self._site.wanted
        filters = [{"Name": "image-id", "Values": sorted({wanted.image, before})}]
        answer = await self._site.call("ec2", "describe_images", Filters=filters, IncludeDeprecated=True)
        images = {image["ImageId"]: image for image in answer["Images"]}
        if wanted.image not in images:
            return f"{wanted.region} has none of that id that this account may see"
        self._image = images[wanted.image]
        self._gone = devices(images.get(before, {})) - devices(self._image)
        return misfit(self._image, wanted.disk)

    def _impossible(self) -> str:
        wanted = self._site.wanted
        if wanted.template.startswith("lt-"):
            return "is named by its id; write a name, under which it can be made"
        if not wanted.image:
            return 'there is no image in the file; write image = "ami-..."'
        if not wanted.groups and not wanted.make_group:
            return "there are no security_groups in the file; write them, or let --security-group make one"
        return ""

    def _new(self, differences: tuple[Difference, ...]) -> Change:
        wanted = self._site.wanted
        return Change(
            region=wanted.region,
            kind=self.kind,
            name=wanted.template,
            verb=Verb.CREATE,
            differences=differences,
            note="version 1",
        )
