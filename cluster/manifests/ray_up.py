"""A file for ``ray up``, Ray's own cluster launcher, on machines of one's own or in a cloud.

Fields are those of Ray's schema for cluster files (``ray/autoscaler/ray-schema.json``). What a provider wants
within ``provider`` and ``node_config`` is the provider's, and only the needed ones are looked for.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.manifests.fields import Fields, Named, names, problems
from cluster.manifests.request import ClusterRequest

PROVIDERS = ("local", "aws", "gcp", "azure")
_NODE_TYPE = Fields(
    known=names(
        "docker idle_timeout_s initialization_commands labels max_workers min_workers node_config priority "
        "worker_setup_commands"
    )
    | {"resources": Named(None)},
    required=frozenset({"node_config", "resources"}),
)
SCHEMA = Fields(
    known=names(
        "cluster_name cluster_synced_files file_mounts file_mounts_sync_continuously head_node_type "
        "head_setup_commands head_start_ray_commands idle_timeout_minutes initialization_commands "
        "max_workers "
        "metadata no_restart provider rsync_exclude rsync_filter setup_commands upscaling_speed "
        "worker_setup_commands worker_start_ray_commands"
    )
    | {
        "auth": Fields(
            known=names("ssh_private_key ssh_proxy_command ssh_proxy_use_node_id ssh_public_key ssh_user")
        ),
        "available_node_types": Named(_NODE_TYPE),
        "docker": Fields(
            known=names(
                "container_name disable_automatic_runtime_detection disable_shm_size_detection head_image "
                "head_run_options image pull_before_run run_options use_podman worker_image "
                "worker_run_options"
            )
        ),
    },
    required=frozenset({"cluster_name", "provider"}),
)
_NEEDED = {
    "local": ("head_ip", "worker_ips"),
    "aws": ("region",),
    "gcp": ("region", "project_id"),
    "azure": ("location", "resource_group"),
}
_NODES = {
    "aws": ("InstanceType", "m5.2xlarge", "g6.2xlarge"),
    "gcp": ("machineType", "n2-standard-8", "a2-highgpu-1g"),
    "azure": ("azure_arm_parameters: {vmSize", "Standard_D8s_v5", "Standard_NC24ads_A100_v4"),
}


def write(request: ClusterRequest) -> str:
    """Return the cluster file as YAML."""
    head = f"""\
# A Ray cluster of {request.workers} workers, which stays until it is taken down.
#   ray up THIS_FILE                    starts it
#   ray dashboard THIS_FILE             forwards its job server to this machine, until Ctrl-C
#   orchestrator submit -- {request.entrypoint}
#   ray down THIS_FILE                  takes it down
cluster_name: {request.name}
max_workers: {request.workers}
"""
    tail = f"""\
docker:
  image: {json.dumps(request.image)}  # with orchestrator and ray[default]
  container_name: ray
  run_options: [--shm-size={max(1, request.memory_gib // 4)}g]
"""
    return head + (_own_machines(request) if request.provider == "local" else _cloud(request)) + tail


def _own_machines(request: ClusterRequest) -> str:
    workers = "\n".join(f"    - CHANGE_ME_WORKER_{number + 1}" for number in range(request.workers))
    return f"""\
provider:
  type: local
  head_ip: CHANGE_ME_HEAD  # a host name or an address that this machine reaches by ssh
  worker_ips:
{workers}
auth:
  ssh_user: CHANGE_ME_USER  # may use docker on all of them
"""


def _cloud(request: ClusterRequest) -> str:
    where = {
        "aws": "  region: us-west-2\n",
        "gcp": "  region: us-central1\n  availability_zone: us-central1-a\n  project_id: CHANGE_ME_PROJECT\n",
        "azure": "  location: westus2\n  resource_group: CHANGE_ME_GROUP\n",
    }[request.provider]
    key, on_cpus, on_gpus = _NODES[request.provider]
    close = "}" if "{" in key else ""
    gpu = f", GPU: {request.gpus}" if request.gpus else ""
    kind = on_gpus if request.gpus else on_cpus
    user = {"aws": "ubuntu", "gcp": "ubuntu", "azure": "ubuntu"}[request.provider]
    return f"""\
provider:
  type: {request.provider}
{where}auth:
  ssh_user: {user}
head_node_type: head
available_node_types:
  head:
    resources: {{CPU: 0}}  # nothing trains here
    node_config:
      {key}: {on_cpus}{close}
  worker:
    min_workers: {request.workers}
    max_workers: {request.workers}
    resources: {{CPU: {request.cpus}{gpu}}}
    node_config:
      # Choose one with at least {request.cpus} CPUs, {request.gpus} GPUs, {request.memory_gib} GiB.
      {key}: {kind}{close}
"""


def check(text: str) -> list[str]:
    """Return what is wrong with a cluster file; nothing when ``ray up`` can use it."""
    import yaml

    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"this is not YAML: {' '.join(str(error).split())}"]
    found = list(problems(document, SCHEMA))
    provider = document.get("provider") if isinstance(document, dict) else None
    if isinstance(provider, dict):
        kind = provider.get("type")
        if kind not in PROVIDERS:
            found.append(f"provider: the type is {kind!r}, and must be one of {', '.join(PROVIDERS)}.")
        found += [
            f"provider: missing field {name!r}."
            for name in _NEEDED.get(str(kind), ())
            if name not in provider
        ]
    elif provider is not None:
        found.append("provider: needs fields.")
    return found
