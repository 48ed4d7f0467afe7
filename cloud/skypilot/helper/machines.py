"""Machines by SkyPilot's provisioners: `sky.provision` and no more, so no Ray, no skylet, no API server.

A machine is a cluster of one to SkyPilot. What it is asked for arrives with every question, as `what`:
{cluster, cloud, region, zone, type, spot, image, disk, network, profile, internal, port, tags, token,
user_data, address}; for one and the same token always the same. Times are seconds, sizes GB.

The names under `sky` that are used here are internal to SkyPilot; they are as in 0.14.1, which the lock pins.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sky
from sky import catalog, clouds, global_user_state, provision
from sky import resources as sky_resources
from sky.backends import backend_utils, cloud_vm_ray_backend
from sky.provision import common
from sky.utils import common_utils, registry

from cloud.skypilot.clouds import CLOUDS
from cloud.skypilot.helper.patience import limit_requests
from cloud.skypilot.helper.refusals import Said, judged, links
from cloud.skypilot.helper.serve import resident

What = Mapping[str, Any]

_STATES: Final = {"INIT": "pending", "UP": "running", "STOPPED": "stopped"}
_AUTH: Final = ("ssh_user", "ssh_private_key", "ssh_proxy_command")
_ENDED: Final = ("terminated", "absent")
_KEPT: Final = 1000  # configurations that are held in memory
_SCRIPT_SECONDS: Final = 120  # that the script may take there: one that hangs keeps a thread no longer


class SkyMachines:
    """What the lines of the wire ask for, by the word of each."""

    version = str(sky.__version__)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, tuple[threading.Lock, int]] = {}  # those under way, and how many wait
        self._configs: dict[str, dict[str, Any]] = {}
        self._wheel = Path.home() / "empty"  # SkyPilot copies its own package from here for every machine
        self._wheel.mkdir(exist_ok=True)
        limit_requests()
        _once_only()
        _own_regions(os.environ.get("ORCHESTRATOR_SKY_REGIONS", "").split(","))
        _no_service_account()

    def info(self) -> dict[str, Any]:
        """The version and bytes of memory."""
        return {"version": self.version, "rss": resident()}

    def look(self, what: What) -> dict[str, Any]:
        """What the cloud says of one machine: {machine, state, address}; `state` "absent" for nothing."""
        return self._look(what, self._config(what))

    def launch(self, what: What, may_launch: bool, again: bool) -> dict[str, Any]:
        """Have one machine for a token. The cloud is always asked first, what has ended included.

        Without `may_launch` nothing is launched, and "absent" says that there is none. `again`: the token was
        asked for before, so a look that fails leaves open what became of that.
        """
        with self._alone(what["token"]):
            try:
                config = self._config(what, anew=True)
                found = self._look(what, config)
            except Exception as error:
                if again:
                    raise Said("uncertain", judged(links(error), change=False)[1]) from error
                raise
            if found["state"] != "absent" or not may_launch:
                return found
            try:
                return self._launched(what, config, create=True)
            except Exception as error:
                return self._after(what, config, error)

    def start(self, what: What) -> dict[str, Any]:
        """Start a stopped machine."""
        with self._alone(what["token"]):
            config = self._config(what)
            found = self._look(what, config)
            if found["state"] in _ENDED:
                raise Said("not-found", f"{what['cluster']} has ended")
            if found["state"] == "stopped":
                # A machine that ends in between must not be replaced by a new one.
                started = self._launched(what, config, create=False)
                if started["machine"] != found["machine"]:
                    self._end(what, config)
                    raise Said("not-found", f"{what['cluster']} has ended")
            return found

    def stop(self, what: What) -> None:
        """Stop a machine; one that is stopped already is success."""
        config = self._config(what)
        found = self._look(what, config)
        if found["state"] in _ENDED:
            raise Said("not-found", f"{what['cluster']} has ended")
        if found["state"] != "stopped":
            provision.stop_instances(what["cloud"], config["name"], config["provider"])

    def terminate(self, what: What) -> None:
        """Ask for the end of a machine; one that is gone is success."""
        self._end(what, self._config(what))

    def forget(self, cluster: str) -> None:
        """Let go of what is kept for a machine that has ended."""
        self._configs.pop(cluster, None)
        global_user_state.remove_cluster_yaml(cluster)

    def engine(self, what: What, script: str) -> None:
        """Run a script on a machine as root, over SSH. Raises Said for a machine that is not up yet."""
        config = self._config(what)
        info = provision.get_cluster_info(what["cloud"], what["region"], config["name"], config["provider"])
        auth = {name: value for name, value in config["auth"].items() if name in _AUTH}
        runner = provision.get_command_runners(what["cloud"], info, **auth)[0]
        packed = base64.b64encode(script.encode()).decode()
        become = "$(command -v sudo >/dev/null && [ $(id -u) != 0 ] && echo sudo -n)"
        code, _, said = runner.run(
            f"echo {packed} | base64 -d | {become} timeout {_SCRIPT_SECONDS} sh -s",
            require_outputs=True,
            stream_logs=False,
            log_path=os.devnull,
        )
        if code != 0:
            raise Said("error", f"the start of the engine over SSH ended with {code}: {said[-300:]}")

    def prices(self, cloud: str, region: str, zones: list[str], types: list[str], spot: bool) -> list[Any]:
        """[[zone, type, USD/h or null], ...] of what the catalogue has of these; what it lacks is not sold.

        Of a cloud without zones the region is the zone.
        """
        found: list[Any] = []
        for kind in types:
            if not catalog.instance_type_exists(kind, cloud):
                raise Said("misconfigured", f"{cloud} has no instance type {kind} in SkyPilot's catalogue")
            for zone in zones:
                try:
                    named = zone if CLOUDS[cloud].zones else None
                    price = catalog.get_hourly_cost(kind, spot, region, named, clouds=cloud)
                except ValueError:
                    continue  # not sold there
                if price is not None:
                    found.append([zone, kind, float(price) if price == price and price > 0 else None])
        return found

    def account(self, cloud: str) -> str:
        """Who the credentials are of, where the cloud says that. Raises Said where it takes none."""
        found = registry.CLOUD_REGISTRY.from_str(cloud)
        if cloud == "aws":  # its own check wants a command line tool as well, which nothing here needs
            return str(found.get_active_user_identity_str() or "")
        good, why = found.check_credentials(clouds.CloudCapability.COMPUTE)
        if not good:
            raise Said("denied", " ".join(str(why).split()))
        return ""

    # -- one machine -------------------------------------------------------------------------------

    def _config(self, what: What, *, anew: bool = False) -> dict[str, Any]:
        """What SkyPilot calls a machine and how it speaks to the cloud: {name, provider, auth, node}."""
        cluster = what["cluster"]
        with self._alone(f"configuration of {cluster}"):  # a list looks at what is being launched
            return self._made(what, anew)

    def _made(self, what: What, anew: bool) -> dict[str, Any]:
        cluster = what["cluster"]
        known = self._configs.get(cluster)
        if known is not None and not (anew and "node" not in known):
            return known
        cloud = registry.CLOUD_REGISTRY.from_str(what["cloud"])
        path = os.path.expanduser(f"~/.sky/generated/{cluster}.yml")
        written: Any = None
        if not anew:
            text = global_user_state.get_cluster_yaml_str(path)
            written = None if text is None else global_user_state.get_cluster_yaml_dict(path)
        if written is None:
            written = self._written(what, cloud)
        name = common_utils.make_cluster_name_on_cloud(cluster, cloud.max_cluster_name_length())
        kinds = written["available_node_types"]
        found = {
            "name": name,
            "provider": written["provider"],
            "auth": written["auth"],
            "node": kinds[written["head_node_type"]]["node_config"],
        }
        if len(self._configs) >= _KEPT:
            self._configs.pop(next(iter(self._configs)))
        self._configs[cluster] = found
        return found

    def _written(self, what: What, cloud: Any) -> Any:
        """The configuration that SkyPilot makes of its own template for the cloud."""
        resources = sky_resources.Resources(
            cloud=cloud,
            instance_type=what["type"],
            region=what["region"],
            zone=what["zone"] if CLOUDS[what["cloud"]].zones else None,
            use_spot=what["spot"],
            image_id=what["image"] or None,
            disk_size=what["disk"] or None,
        )
        region = clouds.Region(what["region"])
        zones = [clouds.Zone(what["zone"])] if CLOUDS[what["cloud"]].zones else None
        if zones is not None:
            region.set_zones(zones)
        made = backend_utils.write_cluster_config(
            resources,
            1,
            cloud_vm_ray_backend._get_cluster_config_template(cloud),
            what["cluster"],
            self._wheel,
            "0",
            region=region,
            zones=zones,
            keep_launch_fields_in_existing_config=False,
        )
        return global_user_state.get_cluster_yaml_dict(made["ray"])

    def _look(self, what: What, config: Mapping[str, Any]) -> dict[str, Any]:
        found = provision.query_instances(
            what["cloud"],
            what["cluster"],
            config["name"],
            provider_config=config["provider"],
            non_terminated_only=False,
        )
        if not found:
            return {"machine": "", "state": "absent", "address": ""}
        # A second machine of a token would be an accident of the cloud: the living one counts.
        machine = min(found, key=lambda each: (found[each][0] is None, each))
        status = found[machine][0]
        state = "terminated" if status is None else _STATES.get(status.name, "pending")
        address = what.get("address") or ""
        if state == "running" and not address:
            address = self._address(what, config, machine)
        return {"machine": machine, "state": state, "address": address if state == "running" else ""}

    def _address(self, what: What, config: Mapping[str, Any], machine: str) -> str:
        """The engine's "host:port" as this host reaches it; empty while the cloud has none."""
        info = provision.get_cluster_info(what["cloud"], what["region"], config["name"], config["provider"])
        heads = info.instances.get(machine) or [each for some in info.instances.values() for each in some]
        if not heads:
            return ""
        host = heads[0].internal_ip if what["internal"] else heads[0].external_ip or heads[0].internal_ip
        port = what["port"]
        if host and CLOUDS[what["cloud"]].maps_ports:
            mapped = provision.query_ports(
                what["cloud"], config["name"], [str(port)], head_ip=host, provider_config=config["provider"]
            ).get(port)
            return f"{mapped[0].host}:{mapped[0].port}" if mapped else ""
        return f"{host}:{port}" if host else ""

    def _launched(self, what: What, config: Mapping[str, Any], *, create: bool) -> dict[str, Any]:
        """Make a machine, or start the one that is stopped; what there is then."""
        node = dict(config["node"])
        _prepared(node, what)
        given = common.ProvisionConfig(
            provider_config=dict(config["provider"]),
            authentication_config=config["auth"],
            docker_config={},
            node_config=node,
            count=1,
            tags=dict(what["tags"]) if create else {},  # a machine that is started has them
            resume_stopped_nodes=not create,
            ports_to_open_on_launch=[what["port"]] if CLOUDS[what["cloud"]].maps_ports else None,
        )
        given = provision.bootstrap_instances(what["cloud"], what["region"], config["name"], given)
        if what["cloud"] == "aws" and not what["profile"]:
            given.node_config.pop("IamInstanceProfile", None)
        made = provision.run_instances(
            what["cloud"], what["region"], what["cluster"], config["name"], config=given
        )
        return {"machine": str(made.head_instance_id), "state": "pending", "address": ""}

    def _after(self, what: What, config: Mapping[str, Any], error: Exception) -> dict[str, Any]:
        """After a launch that raised: the machine that it made all the same, or the refusal that it is."""
        chain = links(error)
        if any(link.code == "IdempotentInstanceTerminated" for link in chain):
            return {
                "machine": "",
                "state": "terminated",
                "address": "",
            }  # so long ago that EC2 shows it no more
        word, text = judged(chain, change=True)
        if word == "uncertain":
            raise error
        try:
            found = self._look(what, config)
        except Exception as unseen:
            raise Said("uncertain", f"{text}; and whether it launched could not be seen: {unseen}") from error
        if found["state"] == "absent":
            raise error
        return found

    def _end(self, what: What, config: Mapping[str, Any]) -> None:
        provision.terminate_instances(what["cloud"], config["name"], config["provider"])

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One at a time for a name, such as a token."""
        with self._lock:
            lock, waiting = self._names.get(name, (threading.Lock(), 0))
            self._names[name] = (lock, waiting + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._names[name]
                if waiting == 1:
                    del self._names[name]
                else:
                    self._names[name] = (lock, waiting - 1)


def _prepared(node: dict[str, Any], what: What) -> None:
    """The launch's own in what SkyPilot's template gives."""
    if what["cloud"] != "aws":
        return
    node["ClientToken"] = what["token"]  # RunInstances with the same token is the same launch
    node["SecurityGroupIds"] = [what["network"]]  # else SkyPilot makes one that opens port 22 to the world
    node["IamInstanceProfile"] = {"Name": what["profile"] or "none"}  # else SkyPilot makes a role
    if what["user_data"]:
        node["UserData"] = base64.b64decode(what["user_data"])  # in place of one that lets SkyPilot in by SSH
    options = node.get("MetadataOptions", {})
    node["MetadataOptions"] = {**options, "HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def _own_regions(regions: Sequence[str]) -> None:
    """Have SkyPilot learn the account's names of zones in these regions of AWS only: it would ask in all,
    with a client for each, which takes long and 80 MB. What it kept of other regions goes."""
    from sky.catalog.data_fetchers import fetch_aws

    fetch_aws.regions_enabled = set(regions)
    for kept in (Path.home() / ".sky" / "catalogs").glob("*/aws/az_mappings-*.csv"):
        kept.unlink()


def _once_only() -> None:
    """Have SkyPilot ask AWS once where it would ask 5 or 12 times: the daemon's next turn is the retry."""
    from sky.provision.aws import instance, utils

    instance.BOTO_CREATE_MAX_RETRIES = 1
    instance.BOTO_MAX_RETRIES = utils.BOTO_MAX_RETRIES = 1


def _no_service_account() -> None:
    """Have no service account on GCP's machines: SkyPilot would make one and give it roles."""
    from sky.provision.gcp import config

    if not callable(getattr(config, "_configure_iam_role", None)):
        raise Said("misconfigured", "this version of SkyPilot makes a service account in another way")
    config._configure_iam_role = lambda *_: {}
