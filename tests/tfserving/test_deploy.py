"""The files in deploy/ are valid, and their ports, paths and names agree with each other and with `serving-config`."""

import copy
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml

from keras_committee.tfserving import config, drift
from keras_committee.tfserving.config import METRICS_PATH, ServedModel, ServerConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = ("models.config", "batching.config", "monitoring.config")
# From tensorflow/serving, model_servers/main.cc; the server exits on an unknown flag.
FLAGS = {
    "port",
    "rest_api_port",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "allow_version_labels_for_unavailable_models",
    "enable_batching",
    "batching_parameters_file",
    "monitoring_config_file",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
}


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def kubernetes(kind):
    (found,) = [d for d in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if d["kind"] == kind]
    return found


def pod():
    return kubernetes("Deployment")["spec"]["template"]["spec"]


def flags(words):
    return dict(re.fullmatch(r"--(\w+)=(\S+)", word).groups() for word in words)


def both_flags():
    return [flags(compose()["serving"]["command"]), flags(pod()["containers"][0]["args"])]


def served():
    (model,) = config.parse_models((DEPLOY / "config" / "models.config").read_text()).model_config_list.config
    return model


def kubernetes_documents():
    """Dict of file and kind -> document, of all files and pages in deploy/."""
    pages = {"kubernetes.yaml": [(DEPLOY / "kubernetes.yaml").read_text()]}
    for page in DEPLOY.glob("*.md"):
        pages[page.name] = re.findall(r"^```yaml\n(apiVersion:.*?)^```", page.read_text(), re.M | re.S)
    return {
        f"{name} {document['kind']}": document
        for name, texts in pages.items()
        for text in texts
        for document in yaml.safe_load_all(text)
    }


def validate_kubernetes(document):
    """Raise ValidationError for unknown fields (strict) and wrong types, by the schemas of Kubernetes."""
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", kubernetes_documents())
def test_kubernetes_accepts_every_document(name):
    validate_kubernetes(kubernetes_documents()[name])


def test_a_field_that_kubernetes_does_not_know_is_found():
    document = copy.deepcopy(kubernetes("Deployment"))
    document["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        validate_kubernetes(document)


def test_the_job_of_the_training_page_and_all_parts_of_the_deployment_are_validated():
    assert {name.split()[1] for name in kubernetes_documents()} == {
        *("ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "Job")
    }


def compose_validator():
    """Validator of the Compose Specification, whose schema check-jsonschema contains."""
    file = resources.files("check_jsonschema.builtin_schemas").joinpath("vendor", "compose-spec.json")
    schema = json.loads(file.read_text())
    return jsonschema.validators.validator_for(schema)(schema)


def test_compose_accepts_its_file():
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert [error.message for error in compose_validator().iter_errors(document)] == []
    document["services"]["serving"]["memlimit"] = "2g"
    assert any("memlimit" in error.message for error in compose_validator().iter_errors(document))


@pytest.mark.parametrize(("change", "accepted"), [("", True), ("scrape_intervall: 1s", False)])
def test_prometheus_accepts_its_file(tmp_path, change, accepted):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it is a part of Debian's package prometheus")
    file = tmp_path / "prometheus.yml"
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    file.write_text(f"{(DEPLOY / 'prometheus.yml').read_text()}\n{change}\n")
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == accepted, done.stderr


def test_the_config_files_are_those_that_are_written():
    written = ServerConfig(models=(ServedModel(name="committee", base_path="/models/committee"),)).render()
    assert {name: (DEPLOY / "config" / name).read_text() for name in NAMES} == written


def test_the_config_map_holds_the_same_files():
    assert kubernetes("ConfigMap")["data"] == {name: (DEPLOY / "config" / name).read_text() for name in NAMES}


def test_both_servers_start_with_the_same_known_flags():
    one, other = both_flags()
    assert one == other
    assert set(one) == FLAGS
    assert one["enable_batching"] == "true"  # otherwise the server rejects the batching file


def test_the_files_named_by_the_flags_are_mounted():
    named = {value for value in both_flags()[0].values() if value.startswith("/")}
    assert named == {f"/etc/committee/{name}" for name in NAMES}
    assert "./config:/etc/committee:ro" in compose()["serving"]["volumes"]
    mounts = {mount["name"]: mount for mount in pod()["containers"][0]["volumeMounts"]}
    assert (mounts["config"]["mountPath"], mounts["models"]["mountPath"]) == ("/etc/committee", "/models")
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes["config"]["configMap"]["name"] == kubernetes("ConfigMap")["metadata"]["name"]
    assert (
        volumes["models"]["persistentVolumeClaim"]["claimName"]
        == (kubernetes("PersistentVolumeClaim")["metadata"]["name"])
    )


def test_the_model_is_mounted_read_only_where_the_config_says():
    assert f"../saved_models/committee:{served().base_path}:ro" in compose()["serving"]["volumes"]
    assert all(mount["readOnly"] for mount in pod()["containers"][0]["volumeMounts"] if mount["name"] != "scratch")
    assert served().base_path.startswith("/models/")


def test_ports_agree_and_are_open_to_the_loopback_only():
    ports = both_flags()[0]
    assert compose()["serving"]["ports"] == [
        f"127.0.0.1:{ports[name]}:{ports[name]}" for name in ("port", "rest_api_port")
    ]
    assert all(port.startswith("127.0.0.1:") for service in compose().values() for port in service["ports"])
    container = {port["name"]: str(port["containerPort"]) for port in pod()["containers"][0]["ports"]}
    assert container == {"grpc": ports["port"], "rest": ports["rest_api_port"]}
    service = kubernetes("Service")["spec"]
    assert {port["targetPort"]: str(port["port"]) for port in service["ports"]} == container
    assert service["type"] == "ClusterIP"


def test_readiness_is_the_status_url_of_the_model():
    container = pod()["containers"][0]
    for probe in ("readinessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{served().name}", "port": "rest"}
    assert f"GET /v1/models/{served().name} HTTP/1.0" in compose()["serving"]["healthcheck"]["test"][-1]


def test_prometheus_scrapes_the_path_and_port_of_the_server():
    monitoring = config.parse_monitoring((DEPLOY / "config" / "monitoring.config").read_text())
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == monitoring.prometheus_config.path == METRICS_PATH
    assert job["static_configs"] == [{"targets": [f"serving:{both_flags()[0]['rest_api_port']}"]}]
    mounts = dict(volume.split(":")[:2] for volume in compose()["prometheus"]["volumes"])
    assert {mounts["./prometheus.yml"], mounts["./alerts.yml"]} == {
        f"/etc/prometheus/{name}.yml" for name in ("prometheus", "alerts")
    }
    annotations = kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == METRICS_PATH


def test_the_alerts_are_on_metrics_of_the_server():
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    names = {name for rule in group["rules"] for name in re.findall(r"keras_committee_\w+", rule["expr"])}
    monitor = drift.DriftMonitor(drift.reference_distribution({"confidence": np.arange(9)}, ["confidence"], {}))
    monitor.add({"confidence": np.arange(100)})
    published = {line.partition("{")[0] for line in monitor.render({})}
    assert names == published


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"])
def test_every_selector_matches_the_pods(kind):
    spec = kubernetes(kind)["spec"]
    selector = spec.get("podSelector", spec.get("selector"))
    labels = kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selector.get("matchLabels", selector).items() <= labels.items()


def test_the_images_are_pinned_and_the_same():
    image = pod()["containers"][0]["image"]
    assert image == compose()["serving"]["image"]
    assert tuple(map(int, image.removeprefix("tensorflow/serving:").split("."))) >= (2, 20, 0)


def test_nothing_runs_as_root_or_without_a_limit():
    assert pod()["securityContext"]["runAsNonRoot"] is True
    container = pod()["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert kubernetes("PodDisruptionBudget")["spec"]["minAvailable"] < kubernetes("Deployment")["spec"]["replicas"]
    assert int(compose()["serving"]["user"].split(":")[0]) > 0
    assert all(service["mem_limit"] and service["cap_drop"] == ["ALL"] for service in compose().values())


def test_the_operators_page_names_existing_files():
    page = (DEPLOY / "serving.md").read_text()
    named = re.findall(r"^\| `([\w./]+)` \|", page, re.M)
    assert len(named) == 4
    assert all((DEPLOY / name).exists() for name in named)
