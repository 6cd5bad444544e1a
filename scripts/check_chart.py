"""Renders the Helm chart with Helm's own engine and validates every manifest against the Kubernetes schemas.

So are the recipes of ``deploy/kubernetes``: values for the chart, and manifests of vLLM's own server.

Needs 350 MB of tools, so they live in an environment of their own (.venv-chart), made at the first run: ``make chart``.
No cluster and no network are involved after that.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "tenth"
RECIPES = ROOT / "deploy" / "kubernetes"
TOOLS = ("helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0", "pyyaml>=6.0")
KUBERNETES = "1.34"
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tls": {"tls": {"existingSecret": "tenth-tls", "serverName": "tenth.internal"}},
    "shared models": {"models": {"existingClaim": "models"}},
    "gpu": {
        "services": {
            "inference": {
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "nodeSelector": {"accelerator": "h100"},
                "image": "tenth-inference-cuda:1.2.3",
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            }
        }
    },
    "batches on a claim": {
        "batch": {"storeUrl": "/var/lib/tenth/objects", "existingClaim": "objects"},
        "batchWorkers": {"control": {"replicas": 5}, "openai": {"lanes": "openai", "replicas": 1, "noticeSeconds": 30}},
    },
    "batches with credentials": {"batch": {"credentialsSecret": "s3", "serviceAccountName": "batches"}},
    "no outbox volume": {"services": {"orchestrator": {"persistent": None}}},
    "private registry": {"image": {"pullSecrets": [{"name": "pull"}], "tag": "1.2.3"}},
}


def main() -> None:
    """Make the environment if it is absent, and check inside it."""
    venv = ROOT / ".venv-chart"
    python = venv / "bin" / "python"
    if sys.prefix == str(venv):
        check()
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *TOOLS], check=True)
    sys.exit(subprocess.run([str(python), __file__]).returncode)


def check() -> None:
    """Lint, render and validate; raises on the first thing that is wrong."""
    # Imported here: they exist in .venv-chart alone.
    import helm_python.chart as helm  # type: ignore[import-not-found]  # see above
    import yaml

    report = helm.lint(str(CHART))
    problems = [message for message in report["messages"] if message["severity"] > 1]
    if report["errors"] or problems:
        sys.exit(f"helm lint: {report['errors']} {problems}")
    variants = dict(VARIANTS)
    for recipe in sorted(RECIPES.glob("*.yaml")):
        documents = [one for one in yaml.safe_load_all(recipe.read_text("utf-8")) if one]
        if "kind" in documents[0]:
            validate(recipe.name, documents)
        else:
            variants[recipe.name] = documents[0]
    for variant, values in variants.items():
        with helm.Chart.load(str(CHART)) as chart:
            rendered = chart.render(values=values, name="mesh")
        text = "\n---\n".join(body for path, body in rendered.items() if path.endswith(".yaml"))
        validate(variant, [one for one in yaml.safe_load_all(text) if isinstance(one, dict) and "kind" in one])


def validate(name: str, manifests: list[dict[str, Any]]) -> None:
    """Check manifests against the schemas; raises on the first thing that is wrong."""
    import kubernetes_validate  # type: ignore[import-not-found]  # exists in .venv-chart alone

    for manifest in manifests:
        if manifest["apiVersion"].startswith("keda.sh/"):
            check_scaled_object(manifest)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    kinds = sorted({manifest["kind"] for manifest in manifests})
    print(f"{name}: {len(manifests)} manifests valid for Kubernetes {KUBERNETES}: {', '.join(kinds)}")


def check_scaled_object(manifest: dict[str, Any]) -> None:
    """KEDA's resource is not among Kubernetes' schemas: its types, and that its triggers are texts, as KEDA wants."""
    spec = manifest["spec"]
    if not (isinstance(spec["minReplicaCount"], int) and isinstance(spec["maxReplicaCount"], int)):
        sys.exit(f"{manifest['metadata']['name']}: replica counts are no numbers")
    for trigger in spec["triggers"]:
        wrong = [key for key, value in trigger["metadata"].items() if not isinstance(value, str) or not value]
        if trigger["type"] != "temporal" or wrong or not spec["triggers"]:
            sys.exit(f"{manifest['metadata']['name']}: trigger {trigger}: {wrong} are no texts")


if __name__ == "__main__":
    main()
