"""Launch templates as EC2 has them: the tags of a template are no part of what its versions hold."""

from moto.ec2.models import EC2Backend


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

    EC2Backend.create_launch_template = create_launch_template
