"""Launch templates as EC2 has them: their own tags are in none of their versions, which count from 1."""

from moto.ec2.exceptions import InvalidLaunchTemplateVersionNotFound
from moto.ec2.models import EC2Backend
from moto.ec2.models.launch_templates import LaunchTemplate


def patch_templates():
    """Change moto's EC2 in this process."""
    create = EC2Backend.create_launch_template

    def create_launch_template(self, name, description, data, tags):
        specifications = [
            s for s in data.get("TagSpecifications", ()) if s["ResourceType"] != "launch-template"
        ]
        kept = {key: value for key, value in data.items() if key != "TagSpecifications"}
        if specifications:
            kept["TagSpecifications"] = specifications
        return create(self, name, description, kept, tags)

    version = LaunchTemplate.get_version

    def get_version(self, num):
        if not str(num).startswith("$") and not (str(num).isdecimal() and int(num) > 0):
            raise InvalidLaunchTemplateVersionNotFound(template_id=self.id, version=num)
        return version(self, num)

    LaunchTemplate.get_version = get_version
    EC2Backend.create_launch_template = create_launch_template
    # moto tells the tags that a template was made with; its own assignment of them changes nothing then.
    LaunchTemplate.tags = property(lambda template: template.get_tags(), lambda template, tags: None)
