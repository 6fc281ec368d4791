"""The cluster files: valid for Ray and, where Ray does not look, for their providers; closed to other hosts; alike."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from ray.autoscaler._private.util import prepare_config, validate_config

from qray.graph.placement import CPUS_ON_DEMAND, GPUS_ON_DEMAND, QUIET, QUIET_ON_DEMAND
from qray.malloc import ARENAS
from qray.ray_address import NOTICED_SOON

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "workflows" / "clusters"
LAUNCHED = {"aws": ROOT / "cluster.yaml", "gcp": CLUSTERS / "gcp.yaml", "local": CLUSTERS / "onprem.yaml"}
KUBERAY, RAYJOB = CLUSTERS / "kuberay.yaml", CLUSTERS / "kuberay-job.yaml"

#: What each provider reads, of which Ray's own check takes anything: ray.autoscaler's node providers.
PROVIDER = {
    "aws": "type region availability_zone cache_stopped_nodes use_internal_ips security_group cloudwatch",
    "gcp": "type region availability_zone project_id use_internal_ips gcp_credentials cache_stopped_nodes",
    "local": "type head_ip worker_ips coordinator_address",
}
#: AWS: parameters of RunInstances. GCP: fields of a Compute Engine instance.
NODE_CONFIG = {
    "aws": "InstanceType ImageId KeyName BlockDeviceMappings IamInstanceProfile InstanceMarketOptions SubnetIds "
           "SecurityGroupIds EbsOptimized Placement NetworkInterfaces MetadataOptions",
    "gcp": "machineType disks scheduling guestAccelerators serviceAccounts metadata networkInterfaces labels "
           "minCpuPlatform canIpForward",
}  # fmt: skip


def closed(**properties: Any) -> dict[str, Any]:
    """The schema of a mapping of these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


WORD, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
WORDS = {"type": "object", "additionalProperties": WORD}
#: Of KubeRay's and Kubernetes' own schemas what the manifests use.
POD = closed(spec=closed(
    volumes=several(closed(name=WORD, persistentVolumeClaim=closed(claimName=WORD))),
    containers=several(closed(
        name=WORD, image=WORD, env=several(closed(name=WORD, value=WORD)),
        volumeMounts=several(closed(name=WORD, mountPath=WORD)),
        resources=closed(requests=WORDS, limits=WORDS),
        ports=several(closed(name=WORD, containerPort=COUNT)),
    )),
))  # fmt: skip
SCHEMAS = {
    KUBERAY: closed(
        apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"}, metadata=closed(name=WORD), spec=closed(
            rayVersion=WORD, authOptions=closed(mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling={"type": "boolean"},
            headGroupSpec=closed(serviceType=WORD, rayStartParams=WORDS, template=POD),
            workerGroupSpecs=several(closed(groupName=WORD, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
                                            rayStartParams=WORDS, template=POD)),
        )
    ),
    RAYJOB: closed(
        apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=closed(name=WORD), spec=closed(
            clusterSelector=WORDS, entrypoint=WORD, backoffLimit=COUNT)
    ),
}  # fmt: skip


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(params=LAUNCHED)
def provider(request: pytest.FixtureRequest) -> str:
    """Whose machines they are."""
    return str(request.param)


@pytest.fixture
def launched(provider: str) -> dict[str, Any]:
    """What `ray up` reads."""
    return dict(read(LAUNCHED[provider]))


def test_every_file_of_the_folder_is_tested() -> None:
    assert {*CLUSTERS.iterdir()} == {LAUNCHED["gcp"], LAUNCHED["local"], *SCHEMAS}


def test_rays_own_validator_takes_it(launched: dict[str, Any]) -> None:
    validate_config(prepare_config(launched))


def test_its_provider_knows_every_key(provider: str, launched: dict[str, Any]) -> None:
    assert launched["provider"]["type"] == provider
    assert launched["provider"].keys() <= set(PROVIDER[provider].split())
    configs = [node["node_config"].keys() for node in launched.get("available_node_types", {}).values()]
    assert all(config <= set(NODE_CONFIG[provider].split()) for config in configs)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_manifest_has_what_kuberay_reads_and_no_more(path: Path) -> None:
    faults = [
        f"{list(fault.absolute_path)}: {fault.message}"
        for fault in Draft7Validator(SCHEMAS[path]).iter_errors(read(path))
    ]
    assert faults == []


def test_a_misspelt_key_of_a_manifest_is_found() -> None:
    manifest = read(KUBERAY)
    manifest["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    assert list(Draft7Validator(SCHEMAS[KUBERAY]).iter_errors(manifest))


@pytest.mark.parametrize("path", [*LAUNCHED.values(), *SCHEMAS], ids=lambda path: path.stem)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{12}|PRIVATE KEY|[0-9a-f]{32}|(?i:password|secret_key)\s*[:=]\s*\S", text)


def test_every_ray_asks_for_a_token_and_the_dashboard_is_the_heads_alone(launched: dict[str, Any]) -> None:
    lines = [*launched["head_start_ray_commands"], *launched["worker_start_ray_commands"]]
    started = [line for line in lines if "ray start" in line]
    assert len(started) == 2
    wanted = {"RAY_AUTH_MODE": "token", "MALLOC_ARENA_MAX": str(ARENAS)} | NOTICED_SOON
    exported = " ".join(["export", *(f"{name}={value}" for name, value in wanted.items()), "&&"])
    assert all(exported in line for line in started)
    assert "--dashboard-host=127.0.0.1" in started[0]
    assert "~/.ray/auth_token" in launched["file_mounts"].values()
    # Neither is a port opened beside those that the provider's own defaults open.
    assert "security_group" not in launched["provider"]


def test_kuberays_asks_for_a_token_within_kubernetes() -> None:
    spec = read(KUBERAY)["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_the_rayjob_goes_to_that_cluster_and_runs_what_there_is() -> None:
    job = read(RAYJOB)["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": read(KUBERAY)["metadata"]["name"]}
    named = re.match(r"qray run all --study (\S+) ", job["entrypoint"])
    assert named is not None
    assert (CLUSTERS.parent / f"{named[1]}.yaml").is_file()


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_head_runs_nothing_and_quiet_nodes_only_what_asks_for_them(name: str) -> None:
    config = read(LAUNCHED[name])
    types = config["available_node_types"]
    head = types[config["head_node_type"]]["resources"]
    workers = {kind: node for kind, node in types.items() if kind != config["head_node_type"]}
    most = {
        what: sum(node["max_workers"] * node["resources"].get(what, 0) for node in workers.values())
        for what in ("CPU", "GPU")
    }
    assert head == {"CPU": 0, QUIET_ON_DEMAND: 1, CPUS_ON_DEMAND: most["CPU"], GPUS_ON_DEMAND: most["GPU"]}
    assert types["quiet_worker"]["resources"] == {"CPU": 0, QUIET: 1}
    # Nothing is paid for while nothing runs.
    assert {node["min_workers"] for node in workers.values()} == {0}
    assert sum(node["max_workers"] for node in workers.values()) == config["max_workers"]
    assert {kind for kind, node in types.items() if QUIET in node["resources"]} == {"quiet_worker"}
    assert {kind for kind, node in types.items() if node["resources"].get("GPU")} == {"gpu_worker"}
    # What is built on the CPU workers can run where it is measured.
    assert types["quiet_worker"]["node_config"] == types["cpu_worker"]["node_config"]


def test_so_do_kuberays() -> None:
    spec = read(KUBERAY)["spec"]
    groups = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}

    def resources(name: str) -> dict[str, int]:
        # A JSON text within a shell's quotation marks, as KubeRay passes it on to `ray start`.
        return dict(json.loads(groups[name]["rayStartParams"].get("resources", "'{}'")[1:-1].replace('\\"', '"')))

    most = {
        what: sum(
            group["maxReplicas"] * int(container["resources"]["requests"].get(name, 0))
            for group in spec["workerGroupSpecs"]
            if group["rayStartParams"].get("num-cpus") != "0"
            for container in group["template"]["spec"]["containers"]
        )
        for what, name in ((CPUS_ON_DEMAND, "cpu"), (GPUS_ON_DEMAND, "nvidia.com/gpu"))
    }
    wanted = {"head": {QUIET_ON_DEMAND: 1, **most}, "gpu": {}, "cpu": {}, "quiet": {QUIET: 1}}
    assert {name: resources(name) for name in groups} == wanted
    without = {name for name, group in groups.items() if group["rayStartParams"].get("num-cpus") == "0"}
    assert without == {"head", "quiet"}
    assert {group["minReplicas"] for group in spec["workerGroupSpecs"]} == {0}


def test_kuberays_ray_is_that_of_qray() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (ray,) = (package for package in packages if package.startswith("ray["))
    assert ray.partition("==")[2] == read(KUBERAY)["spec"]["rayVersion"]


@pytest.mark.parametrize(("quiet", "said"), [
    (True, ["start", "--address=10.0.0.1:6379", "--num-cpus=0", '--resources={"qray_quiet":1}']),
    (False, ["start", "--address=10.0.0.1:6379"]),
])  # fmt: skip
def test_a_machine_of_ones_own_is_quiet_where_a_file_says_so(quiet: bool, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("ulimit() { :; }\n")
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\ntest "$RAY_AUTH_MODE" = token && printf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    if quiet:
        (tmp_path / "qray_quiet").touch()
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    line = read(LAUNCHED["local"])["worker_start_ray_commands"][-1]
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == said
