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


def run(bundles, spares):
    tuner = tune.Tuner(
        tune.with_resources(train, tune.PlacementGroupFactory(bundles)),
        param_space={"spares": tune.grid_search(spares)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=os.getcwd(), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    return [{name: result.metrics.get(name) for name in ("inside", "error")} for result in results]


worker = {"CPU": 0.5}
print(json.dumps([*run([{"CPU": 0.5}, worker, worker], [0, 1]), *run([worker, worker], [0])]))
"""


@pytest.mark.slow
def test_a_trial_uses_its_own_bundles(run_driver: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """With bundles for its workers, they run there; with too few of them, or with spares, the trial is told
    what to reserve, instead of waiting for other trials' room.
    """
    done = run_driver(_TRIALS)
    assert done.returncode == 0, done.stderr
    reserved, spares, short = json.loads(done.stdout.splitlines()[-1])
    assert reserved == {"inside": True, "error": ""}
    assert spares["error"].startswith("spares=1 in a trial of Ray Tune")
    assert short["error"].startswith("This trial of Ray Tune has not reserved room for its workers")
    assert "tune.PlacementGroupFactory([{'CPU': 1}] + [{'CPU': 0.5}] * 2)" in short["error"]
