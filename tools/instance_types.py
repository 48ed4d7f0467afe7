"""Makes the table of EC2's instance types anew from the installed boto3: `python tools/instance_types.py`.

The table is shipped as `cloud/aws/instance_types.txt`, one name a line. `orchestrator validate` reads it; the
daemon's command line must not wait for the ten megabytes of boto3's own description of EC2.
"""

from __future__ import annotations

from pathlib import Path

from botocore.loaders import Loader

TABLE = Path(__file__).parents[1] / "cloud" / "aws" / "instance_types.txt"


def main() -> None:
    """Write the table."""
    names = Loader().load_service_model("ec2", "service-2")["shapes"]["InstanceType"]["enum"]
    TABLE.write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
