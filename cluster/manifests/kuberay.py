"""KubeRay's RayJob: Kubernetes makes a Ray cluster, runs one command on it, and takes it away again.

Fields are those of KubeRay's API ``ray.io/v1`` and of Kubernetes' pod templates. Text that is no YAML, or no
RayJob, is found like a wrong field.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.manifests.fields import Each, Fields, Named, names, problems
from cluster.manifests.request import ClusterRequest

_RESOURCES = Fields(known={"limits": Named(None), "requests": Named(None), "claims": None})
_CONTAINER = Fields(
    known=names(
        "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe "
        "resizePolicy restartPolicy securityContext startupProbe stdin stdinOnce terminationMessagePath "
        "terminationMessagePolicy tty volumeDevices volumeMounts workingDir"
    )
    | {"resources": _RESOURCES},
    required=frozenset({"name", "image"}),
)
_POD = Fields(
    known=names(
        "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
        "ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname imagePullSecrets "
        "nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates "
        "resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates "
        "securityContext "
        "serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain "
        "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes"
    )
    | {"containers": Each(_CONTAINER), "initContainers": Each(_CONTAINER)},
    required=frozenset({"containers"}),
)
_METADATA = Fields(known=names("annotations finalizers generateName labels name namespace"))
_TEMPLATE = Fields(known={"metadata": _METADATA, "spec": _POD}, required=frozenset({"spec"}))
_HEAD = Fields(
    known=names("enableIngress headService labels rayStartParams resources serviceType")
    | {"template": _TEMPLATE},
    required=frozenset({"template"}),
)
_WORKERS = Fields(
    known=names(
        "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams "
        "replicas resources "
        "scaleStrategy suspend"
    )
    | {"template": _TEMPLATE},
    required=frozenset({"groupName", "replicas", "template"}),
)
_CLUSTER = Fields(
    known=names(
        "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions "
        "headServiceAnnotations "
        "managedBy networkPolicy rayVersion suspend upgradeStrategy"
    )
    | {"headGroupSpec": _HEAD, "workerGroupSpecs": Each(_WORKERS)},
    required=frozenset({"headGroupSpec", "rayVersion", "workerGroupSpecs"}),
)
SCHEMA = Fields(
    known={
        "apiVersion": None,
        "kind": None,
        "metadata": Fields(known=_METADATA.known, required=frozenset({"name"})),
        "spec": Fields(
            known=names(
                "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint "
                "entrypointNumCpus "
                "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds "
                "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate "
                "suspend ttlSecondsAfterFinished"
            )
            | {"rayClusterSpec": _CLUSTER},
            required=frozenset({"entrypoint", "rayClusterSpec"}),
        ),
    },
    required=frozenset({"apiVersion", "kind", "metadata", "spec"}),
)


def write(request: ClusterRequest) -> str:
    """Return the manifest as YAML."""
    gpu = f"\n                    nvidia.com/gpu: {request.gpus}" if request.gpus else ""
    shared_gib = max(1, request.memory_gib // 4)
    return f"""\
# A Ray cluster of {request.workers} workers for one command. KubeRay makes it, and takes it away afterwards.
#   kubectl apply -f THIS_FILE          starts it
#   kubectl logs -f job/{request.name}  follows it
#   kubectl delete -f THIS_FILE         stops it
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: {request.name}
spec:
  # Runs on the head node. In it, this takes all workers:
  # Trainer(devices={max(1, request.gpus)}, num_nodes={request.workers})
  entrypoint: {json.dumps(request.entrypoint)}
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600  # time to look at the dashboard
  # A failed job is started on a new cluster this many times; fit(ckpt_path="last") goes on where it was,
  # if checkpoints are on storage that outlives the pods.
  backoffLimit: 0
  rayClusterSpec:
    rayVersion: {json.dumps(request.ray_version)}  # as in the image
    headGroupSpec:
      rayStartParams:
        num-cpus: "0"  # nothing trains here
        dashboard-host: 0.0.0.0  # so that the service reaches it: who may do so is your network's matter
      template:
        spec:
          containers:
            - name: ray-head
              image: {json.dumps(request.image)}  # with orchestrator, your code and ray[default]
              resources:
                requests: {{cpu: "2", memory: 8Gi}}
                limits: {{cpu: "2", memory: 8Gi}}
    workerGroupSpecs:
      - groupName: workers
        replicas: {request.workers}
        minReplicas: {request.workers}
        maxReplicas: {request.workers}
        rayStartParams: {{}}
        template:
          spec:
            containers:
              - name: ray-worker
                image: {json.dumps(request.image)}
                resources:  # requests equal limits, so that no worker is evicted for what another uses
                  requests:
                    cpu: "{request.cpus}"
                    memory: {request.memory_gib}Gi{gpu}
                  limits:
                    cpu: "{request.cpus}"
                    memory: {request.memory_gib}Gi{gpu}
                volumeMounts:
                  - {{name: shared-memory, mountPath: /dev/shm}}
            volumes:
              - name: shared-memory  # Ray's object store and DataLoader processes; counts as memory
                emptyDir: {{medium: Memory, sizeLimit: {shared_gib}Gi}}
"""


def check(text: str) -> list[str]:
    """Return what is wrong with a manifest; nothing when it can be applied."""
    import yaml

    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"this is not YAML: {' '.join(str(error).split())}"]
    found = list(problems(document, SCHEMA))
    if isinstance(document, dict):
        for key, wanted in (("apiVersion", "ray.io/v1"), ("kind", "RayJob")):
            if document.get(key, wanted) != wanted:
                found.append(f"{key} is {document[key]!r}, and must be {wanted!r}.")
    return found
