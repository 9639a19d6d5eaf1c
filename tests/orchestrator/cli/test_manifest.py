"""`orchestrator manifest`: what is written is right by the systems' fields, and what is wrong is found."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from cluster.manifests import kuberay, ray_up, slurm
from orchestrator.cli import main

ASKED = ["--name=digits", "--workers=3", "--cpus=8", "--gpus=2", "--memory=64", "--output=made"]
COMMAND = ["--", "python", "train.py", "--note", 'a "b" c']


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(kind: str, *words: str) -> str:
    """What is written for the workers above."""
    assert main(["manifest", kind, *ASKED, *words, *COMMAND]) == 0
    return Path("made").read_text()


def test_kuberay_gets_the_asked_workers() -> None:
    """The RayJob has the workers, their resources, the image and the command, and passes the check."""
    text = make("kuberay", "--image=registry/own:1")
    assert kuberay.check(text) == []
    assert main(["manifest", "kuberay", "--check=made"]) == 0
    job = yaml.safe_load(text)
    assert job["spec"]["entrypoint"] == "python train.py --note 'a \"b\" c'"
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert (group["replicas"], container["image"]) == (3, "registry/own:1")
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 2}
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_slurm_gets_the_asked_workers() -> None:
    """The script is a shell's, its options are sbatch's, and srun's tasks are not taken for ranks."""
    text = make("slurm", "--time=2-00:00:00")
    assert slurm.check(text) == []
    subprocess.run(["bash", "-n", "made"], check=True)
    for line in ("--nodes=3", "--cpus-per-task=8", "--gpus-per-node=2", "--mem=64G", "--time=2-00:00:00"):
        assert f"#SBATCH {line}\n" in text
    assert "env -u SLURM_PROCID -u SLURM_STEP_NUM_TASKS" in text
    assert text.endswith("  -- python train.py --note 'a \"b\" c'\n")


def test_slurms_script_runs_on_stand_ins(tmp_path: Path) -> None:
    """With stand-ins for Slurm, Ray starts at the first node's address, with the command last."""
    make("slurm")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'shift 2; exec "$@"',
        "ray": '[ -z "${SLURM_PROCID-}" ] && printf "%s\\n" "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "123456",
        "SLURM_PROCID": "0",
    }
    ran = subprocess.run(["bash", "made"], env=environment, capture_output=True, text=True, check=True)
    words = ["symmetric-run", "--address", "node7:23456", "--min-nodes", "2", "--num-cpus=8", "--num-gpus=2"]
    assert ran.stdout.splitlines() == [*words, "--", "python", "train.py", "--note", 'a "b" c']


@pytest.mark.parametrize("provider", ray_up.PROVIDERS)
def test_ray_up_gets_a_file_of_rays_schema(provider: str) -> None:
    """Ray's own schema finds nothing wrong with what is written for each provider."""
    import jsonschema

    text = make("ray-up", f"--provider={provider}", "--image=registry/own:1")
    assert ray_up.check(text) == []
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load(text), schema)
    assert yaml.safe_load(text)["max_workers"] == 3


def test_the_fields_are_those_that_ray_documents() -> None:
    """The schema here and Ray's know the same fields, so that neither refuses what the other takes."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    assert set(ray_up.SCHEMA.known) == set(schema["properties"])
    for part in ("auth", "docker"):
        assert set(ray_up.SCHEMA.known[part].known) == set(schema["properties"][part]["properties"])


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        (
            "kuberay",
            "replicas: 3",
            "replica: 3",
            "workerGroupSpecs[0]: unknown field 'replica'. Did you mean ",
        ),
        ("kuberay", "replicas: 3", "replica: 3", "workerGroupSpecs[0]: missing field 'replicas'."),
        ("kuberay", "- name: ray-head", "- nam: ray-head", "containers[0]: missing field 'name'."),
        ("kuberay", "kind: RayJob", "kind: RayCluster", "kind is 'RayCluster', and must be 'RayJob'."),
        ("kuberay", "spec:\n", "spec: [\n", "this is not YAML"),
        ("slurm", "--nodes=", "--node=", "unknown option '--node'. Did you mean '--nodes'?"),
        ("slurm", "--nodes=", "--node=", "missing option '--nodes'."),
        ("slurm", "#!/bin/bash\n", "#!/bin/bash\nset -e\n", "comes after a command, where Slurm ignores it."),
        ("slurm", "#SBATCH --nodes=3", "#SBATCH -N 3", "write options in full"),
        (
            "ray-up",
            "cluster_name:",
            "cluster_nam:",
            "unknown field 'cluster_nam'. Did you mean 'cluster_name'?",
        ),
        ("ray-up", "  head_ip:", "  head:", "provider: missing field 'head_ip'."),
        (
            "ray-up",
            "type: local",
            "type: loca",
            "provider: the type is 'loca', and must be one of local, aws",
        ),
        ("ray-up", "max_workers: 3", "max_workers: 3 # CHANGE_ME", "something is still to be filled in"),
    ],
)
def test_what_is_wrong_is_found(
    kind: str, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check says what is wrong, and where, and ends with status 2."""
    text = make(kind, *([] if kind == "slurm" else ["--image=own:1"])).replace("CHANGE_ME", "host")
    Path("made").write_text(text.replace(old, new, 1))
    assert main(["manifest", kind, "--check=made"]) == 2
    assert said in capsys.readouterr().err


def test_a_file_is_not_replaced_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is there stays, unless --force says otherwise."""
    make("slurm")
    assert main(["manifest", "slurm", *ASKED, *COMMAND]) == 2
    assert "--output=made is there already" in capsys.readouterr().err
    make("slurm", "--force")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers=0", *COMMAND], "--workers=0 is too few. Use at least 1."),
        (["--name=My_Run", *COMMAND], "--name=My_Run cannot name a cluster."),
        (["--time=soon", *COMMAND], "--time=soon is no time."),
        ([], "There is no command to run."),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each argument is checked before anything is written."""
    assert main(["manifest", "slurm", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_to_be_filled_in_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --output the file goes to standard output, and what is left open to the error stream."""
    assert main(["manifest", "kuberay", *COMMAND]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("# A Ray cluster of 1 workers")
    assert printed.err == "Still to be filled in: CHANGE_ME_IMAGE.\n"
