"""What SkyPilot is told, so that it makes no role and opens no port."""

import pytest
from sky_stage import region

from cloud.skypilot.clouds import CLOUDS, NOT_OFFERED
from cloud.skypilot.places import sky_config


def place(**changes):
    return region(**changes)


def test_aws_gets_no_role_and_no_group_of_skypilots():
    config = sky_config("aws", {"us-east-1": place()})
    assert config == {
        "aws": {"use_internal_ips": False, "remote_identity": "none", "security_group_name": "none"}
    }
    private = sky_config("aws", {"us-east-1": place(public=False)})["aws"]
    assert (private["use_internal_ips"], private["ssh_proxy_command"]) == (True, "nc %h %p")


def test_each_cloud_is_given_its_network_where_skypilot_looks_for_it():
    gcp = place(cloud="gcp", region="us-central1", zones=("us-central1-a",), network="net")
    assert sky_config("gcp", {"us-central1": gcp})["gcp"]["vpc_name"] == "net"
    nebius = place(cloud="nebius", region="eu-north1", zones=("eu-north1",), network="group")
    assert sky_config("nebius", {"eu-north1": nebius})["nebius"]["security_group_name"] == "group"
    oci = place(cloud="oci", region="eu-frankfurt-1", zones=("z",), network="ocid1.subnet")
    assert sky_config("oci", {"eu-frankfurt-1": oci}) == {
        "oci": {"eu-frankfurt-1": {"vcn_subnet": "ocid1.subnet"}}
    }
    runpod = place(cloud="runpod", region="US", zones=("US-KS-2",), network="")
    assert sky_config("runpod", {"US": runpod}) == {}


def test_two_networks_of_a_cloud_that_takes_one_are_refused():
    regions = {
        name: place(cloud="gcp", region=name, zones=(f"{name}-a",), network=name) for name in ("r1", "r2")
    }
    with pytest.raises(ValueError, match="one network for all regions"):
        sky_config("gcp", regions)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cloud": "azure"}, "no cloud that is launched on"),
        ({"network": ""}, "name the id of a security group"),
        ({"instance_types": ()}, "no instance type"),
        ({"zones": ()}, "no zone is given"),
        ({"cloud": "nebius"}, "has no zones"),
        ({"internal": False, "public": False}, "reached by the private one"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        place(**changes)


def test_every_cloud_with_spot_is_offered_or_says_why_not():
    assert {"aws", "gcp", "azure", "ibm", "nebius", "oci", "runpod", "vast", "verda"} <= {
        *CLOUDS,
        *NOT_OFFERED,
    }
    assert not CLOUDS.keys() & NOT_OFFERED.keys()
