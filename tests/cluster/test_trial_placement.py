"""Workers of a trial of Ray Tune run in what the trial has reserved, and nowhere else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.ray

_TRIALS = """
import json, os, warnings

warnings.simplefilter("ignore")  # Tune's own
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
import ray
from ray import tune
from cluster import PlacementError, WorkerGroup, session
from tests.cluster.conftest import small_spec

session.connect()


def train(config):
    inside = ray.util.get_current_placement_group()
    try:
        group = WorkerGroup.start(small_spec(2, spares=config["spares"]))
    except PlacementError as error:
        tune.report({"error": str(error)})
        return
    places = group.run(lambda context: ray.util.get_current_placement_group().id.hex())
    tune.report({"inside": set(places) == {inside.id.hex()}, "error": ""})
    group.shutdown()


def run(bundles, spares=0):
    factory = tune.PlacementGroupFactory(bundles)
    tuner = tune.Tuner(
        tune.with_resources(train, factory),
        param_space={"spares": spares},
        run_config=tune.RunConfig(storage_path=os.getcwd(), verbose=0),
    )
    (result,) = tuner.fit()
    assert result.error is None, result.error
    return {name: result.metrics.get(name) for name in ("inside", "error")}


worker = {"CPU": 0.5}
found = [run([{"CPU": 0.5}, worker, worker]), run([worker, worker]), run([{}, worker, worker]),
         run([{"CPU": 0.5}, worker, worker], spares=1)]
print(json.dumps(found))
"""


def test_a_trial_uses_its_own_bundles(run_driver: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """With bundles for its workers, a bundle for itself or not, they run there; with too few of them, or with
    spares, the trial is told what to reserve, instead of waiting for other trials' room.
    """
    done = run_driver(_TRIALS)
    assert done.returncode == 0, done.stderr
    reserved, short, headless, spares = json.loads(done.stdout.splitlines()[-1])
    assert reserved == {"inside": True, "error": ""}
    assert headless == {"inside": True, "error": ""}
    assert short["error"].startswith("This trial of Ray Tune has not reserved room for its workers")
    assert "tune.PlacementGroupFactory([{'CPU': 1}] + [{'CPU': 0.5}] * 2)" in short["error"]
    assert spares["error"].startswith("spares=1 in a trial of Ray Tune")
