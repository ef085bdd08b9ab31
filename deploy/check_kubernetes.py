"""Whether Prefect and Kubernetes take the job template: `make k8s-check`, in an environment of its own.

prefect-kubernetes makes of it the job of each deployment `cluster` of prefect.yaml, as its worker would; Kubernetes'
client then reads the job as the classes of its API. What they do not know, they drop: nothing may be missing after.
"""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import yaml
from kubernetes_asyncio.client import ApiClient
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

HERE = Path(__file__).parent
TEMPLATE = HERE / "kubernetes-job.json"
# What each job must have, so that a retried pod finds its checkpoints and no record is lost.
DEMANDS = {
    "a volume claim": lambda pod: any("persistentVolumeClaim" in volume for volume in pod["volumes"]),
    "a place where it is mounted": lambda pod: any(
        mount["mountPath"] == "/workspace" for mount in pod["containers"][0]["volumeMounts"]
    ),
    "the addresses of the servers": lambda pod: pod["containers"][0]["envFrom"][0]["secretRef"]["optional"] is False,
}


def main() -> int:
    """Check every deployment and print a line each; the exit status."""
    template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    problems = _unused(template)
    content = yaml.safe_load((HERE.parent / "prefect.yaml").read_text(encoding="utf-8"))
    for deployment in content["deployments"]:
        if deployment["name"] != "cluster":
            continue
        flow = deployment["entrypoint"].partition(":")[2]
        values = {**deployment["work_pool"]["job_variables"], "image": "gain:1", "command": "prefect flow-run execute"}
        job = asyncio.run(_job(template, values))
        found = [*_lost(job, asyncio.run(_as_kubernetes_reads(job))), *_lacking(job)]
        problems += [f"{flow}/cluster: {problem}" for problem in found]
        gpus = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        print(f"{flow}/cluster: {'refused' if found else 'accepted'}, {gpus} GPUs")
    for problem in problems:
        print(f"error: {TEMPLATE.name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _unused(template: dict[str, Any]) -> list[str]:
    text = json.dumps(template["job_configuration"])
    names = template["variables"]["properties"]
    return [f"the variable {name} is used nowhere" for name in names if f" {name} " not in text]


async def _job(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, values)
    # As much of a flow run as a job is named after.
    run = SimpleNamespace(id=UUID(int=0), name="check", deployment_id=None, flow_id=None, work_queue_id=None, labels={})
    configuration.prepare_for_flow_run(run)
    return dict(configuration.job_manifest)


async def _as_kubernetes_reads(job: dict[str, Any]) -> dict[str, Any]:
    async with ApiClient() as client:
        read = client.deserialize(SimpleNamespace(data=json.dumps(job)), "V1Job")
        return dict(client.sanitize_for_serialization(read))


def _lost(given: Any, read: Any, place: str = "job") -> list[str]:
    """What of a job is not there, or otherwise, once Kubernetes' classes have read it."""
    if isinstance(given, dict):
        missing = [f"{place}.{key} is unknown" for key, value in given.items() if value is not None and key not in read]
        return missing + [
            lost for key in given if key in read for lost in _lost(given[key], read[key], f"{place}.{key}")
        ]
    if isinstance(given, list):
        pairs = enumerate(zip(given, read, strict=True))
        return [lost for index, (a, b) in pairs for lost in _lost(a, b, f"{place}[{index}]")]
    return [] if str(given) == str(read) else [f"{place} is {given!r}, read as {read!r}"]


def _lacking(job: dict[str, Any]) -> list[str]:
    pod = job["spec"]["template"]["spec"]
    return [f"the pod lacks {what}" for what, holds in DEMANDS.items() if not holds(pod)]


if __name__ == "__main__":
    sys.exit(main())
