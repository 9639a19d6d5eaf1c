"""The TensorBoard logger, read back with TensorBoard's own code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import TensorBoardLogger


def read(logger: TensorBoardLogger) -> Any:
    """Return what TensorBoard knows of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(logger.log_dir).Reload()


def hparams_of(logger: TensorBoardLogger) -> tuple[Any, Any, Any]:
    """Return what the HParams tab reads: the experiment, how the run started, how it ended (None if not
    yet)."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    contents = read(logger).PluginTagToContent("hparams")
    data = [
        HParamsPluginData.FromString(contents[tag]) if tag in contents else None
        for tag in ("_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info")
    ]
    assert data[0] is not None
    assert data[1] is not None
    return data[0].experiment, data[1].session_start_info, data[2] and data[2].session_end_info


def values(logger: TensorBoardLogger, tag: str) -> list[tuple[int, float]]:
    """Return (step, value) of one scalar."""
    return [(event.step, event.value) for event in read(logger).Scalars(tag)]


def test_scalars_are_recorded(tmp_path: Path) -> None:
    """Python numbers and tensors of one element are recorded at their step."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 0.5, "n": 3, "t": torch.tensor([2.0])}, 4)
    logger.log_metrics({"loss": 0.25}, 5)
    logger.save()
    assert values(logger, "loss") == [(4, 0.5), (5, 0.25)]
    assert values(logger, "n") == [(4, 3)]
    assert values(logger, "t") == [(4, 2)]
    logger.finalize("success")


def test_scalars_need_neither_torchs_writer_nor_tensorboards(tmp_path: Path) -> None:
    """Recording scalars and hyperparameters loads message types only, and making a logger not even those."""
    program = f"""
import sys
from orchestrator.loggers import TensorBoardLogger
logger = TensorBoardLogger({str(tmp_path)!r})
assert "tensorboard" not in sys.modules and "torch" not in sys.modules
logger.log_metrics({{"loss": 1.0}}, 0)
logger.log_hyperparams({{"lr": 0.1}})
logger.finalize("success")
assert "torch" not in sys.modules
heavy = ("tensorboard.summary", "tensorboard.compat.tensorflow_stub")
assert not any(name.startswith(heavy) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_dictionary_is_one_chart_of_several_lines(tmp_path: Path) -> None:
    """Each entry of a dict is a run of its own below the run, under the common tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"acc": {"train": 0.9, "val": 0.8}, "loss": 1.0}, 3)
    logger.finalize("success")
    found = {
        line: EventAccumulator(f"{logger.log_dir}/acc_{line}").Reload().Scalars("acc")[0].value
        for line in ("train", "val")
    }
    assert found == pytest.approx({"train": 0.9, "val": 0.8})
    assert values(logger, "loss") == [(3, 1.0)]


def test_experiment_is_pytorchs_writer_on_the_same_file(tmp_path: Path) -> None:
    """Histograms and scalars, before and after, are in one file that TensorBoard follows to its end."""
    from torch.utils.tensorboard import SummaryWriter

    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    assert isinstance(logger.experiment, SummaryWriter)
    assert logger.experiment is logger.experiment
    logger.experiment.add_text("note", "hello", 0)
    logger.log_metrics({"loss": 0.5}, 1)
    logger.save()
    assert len(list(Path(logger.log_dir).glob("events*"))) == 1
    assert values(logger, "loss") == [(0, 1.0), (1, 0.5)]
    assert "note/text_summary" in read(logger).Tags()["tensors"]
    logger.finalize("success")


def test_recording_goes_on_after_finalize(tmp_path: Path) -> None:
    """A test after a fit adds to the same run, in a newer file."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    logger.log_metrics({"loss": 0.5}, 1)
    logger.finalize("success")
    assert len(list(Path(logger.log_dir).glob("events*"))) == 2
    assert values(logger, "loss") == [(0, 1.0), (1, 0.5)]


def test_event_files_can_lie_in_a_directory_below(tmp_path: Path) -> None:
    """With sub_dir events go below the version directory, hparams.yaml stays in it."""
    logger = TensorBoardLogger(tmp_path, sub_dir="fold_1")
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    version = tmp_path / "lightning_logs" / "version_0"
    assert logger.log_dir == str(version / "fold_1")
    assert sorted(path.name for path in version.iterdir()) == ["fold_1", "hparams.yaml"]


# ---------------------------------------------------------------- hyperparameters


def test_hyperparameters_reach_the_tab(tmp_path: Path) -> None:
    """The tab gets every value with its type, flat names, the metric to compare by, and how the run ended."""
    from tensorboard.plugins.hparams.api_pb2 import DataType, Status

    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "net": {"act": "relu", "bias": True}, "layers": [1, 2], "none": None})
    experiment, start, _ = hparams_of(logger)
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    assert kinds == {
        "lr": DataType.DATA_TYPE_FLOAT64,
        "net/act": DataType.DATA_TYPE_STRING,
        "net/bias": DataType.DATA_TYPE_BOOL,
        "layers": DataType.DATA_TYPE_STRING,
    }
    assert [info.name.tag for info in experiment.metric_infos] == ["hp_metric"]
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["net/bias"].bool_value is True
    assert start.hparams["layers"].string_value == "[1, 2]"
    assert values(logger, "hp_metric") == [(0, -1.0)]
    logger.finalize("success")
    _, _, end = hparams_of(logger)
    assert end.status == Status.STATUS_SUCCESS


def test_tensorboards_own_backend_lists_the_run(tmp_path: Path) -> None:
    """The backend of the HParams tab finds one session for each run, with its hyperparameters and metric."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    for rate in (0.1, 0.2):
        logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
        logger.log_hyperparams({"lr": rate}, {"acc": rate * 2})
        logger.finalize("success")
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[api_pb2.ColParams(hparam="lr"), api_pb2.ColParams(metric=api_pb2.MetricName(tag="acc"))],
    )
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), []
    )
    handler = list_session_groups.Handler(RequestContext(), context, "", request)
    groups = handler.run().session_groups
    assert [info.name for info in experiment.hparam_infos] == ["lr"]
    found = [(group.hparams["lr"].number_value, group.metric_values[0].value) for group in groups]
    assert dict(found) == pytest.approx({0.1: 0.2, 0.2: 0.4})


def test_a_failed_run_is_marked(tmp_path: Path) -> None:
    """A run that ended otherwise than by success has failed."""
    from tensorboard.plugins.hparams.api_pb2 import Status

    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("failed")
    assert hparams_of(logger)[2].status == Status.STATUS_FAILURE


@pytest.mark.parametrize(
    ("default", "metrics", "expected"),
    [
        (True, None, {"hp_metric": -1}),
        (False, None, {}),
        (False, 0.5, {"hp_metric": 0.5}),
        (True, {"a": 1}, {"a": 1}),
    ],
)
def test_the_metrics_of_the_tab(
    tmp_path: Path, default: bool, metrics: Any, expected: dict[str, float]
) -> None:
    """The given metrics, or one called hp_metric, or none, are what runs are compared by."""
    logger = TensorBoardLogger(tmp_path, default_hp_metric=default)
    logger.log_hyperparams({"lr": 0.1}, metrics)
    logger.finalize("success")
    infos = hparams_of(logger)[0].metric_infos
    assert [info.name.tag for info in infos] == list(expected)
    assert {tag: values(logger, tag)[0][1] for tag in expected} == expected


def test_the_placeholder_does_not_cover_a_logged_metric(tmp_path: Path) -> None:
    """Telling the hyperparameters again, in a second fit, leaves the value of hp_metric as it is."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"hp_metric": 0.9}, 5)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    assert values(logger, "hp_metric") == [(0, -1.0), (5, pytest.approx(0.9))]


def test_hyperparameters_are_in_a_file_too(tmp_path: Path) -> None:
    """hparams.yaml holds all that was told, nested as it was, and none is made for a run without."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({})
    assert not (Path(logger.log_dir) / "hparams.yaml").exists()
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 3}})
    logger.log_hyperparams({"batch": 8})
    found = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert found == {"lr": 0.1, "net": {"width": 3}, "batch": 8}
    logger.finalize("success")


# ---------------------------------------------------------------- the graph


def test_the_graph_is_recorded_when_asked_for(tmp_path: Path) -> None:
    """With log_graph=True the graph of the forward is there, without it nothing is loaded or written."""
    for asked in (True, False):
        logger = TensorBoardLogger(tmp_path, log_graph=asked)
        logger.log_graph(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
        logger.finalize("success")
        assert read(logger).Tags()["graph"] is asked


def test_a_graph_without_input_is_a_warning(tmp_path: Path) -> None:
    """A module without example_input_array is told how to get a graph, and training goes on."""
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    with pytest.warns(UserWarning, match="example_input_array"):
        logger.log_graph(nn.Linear(2, 3))
    logger.finalize("success")


def test_a_graph_that_cannot_be_traced_is_a_warning(tmp_path: Path) -> None:
    """The warning has the reason, and training goes on."""
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    with pytest.warns(UserWarning, match="could not record"):
        logger.log_graph(nn.Linear(2, 3), torch.zeros(1, 5))
    logger.finalize("success")


# ---------------------------------------------------------------- the rest


def test_rewind_hides_what_is_repeated(tmp_path: Path) -> None:
    """After a loss TensorBoard shows each step once, whether the file was open or is opened anew."""
    logger = TensorBoardLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"loss": step}, step)
    logger.rewind(2)
    logger.log_metrics({"loss": 20}, 2)
    logger.finalize("success")
    assert values(logger, "loss") == [(0, 0), (1, 1), (2, 20)]
    again = TensorBoardLogger(tmp_path, version=0)
    again.rewind(1)
    again.log_metrics({"loss": 10}, 1)
    again.finalize("success")
    assert values(logger, "loss") == [(0, 0), (1, 10)]


def test_purge_step_of_summary_writer_works(tmp_path: Path) -> None:
    """A logger made with purge_step hides what an earlier one recorded from there on."""
    for step, purge_step in ((5, None), (4, 4)):
        logger = TensorBoardLogger(tmp_path, version=0, filename_suffix=".x", purge_step=purge_step)
        logger.log_metrics({"loss": step}, step)
        logger.finalize("success")
    assert values(logger, "loss") == [(4, 4)]
    assert all(path.suffix == ".x" for path in Path(logger.log_dir).iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flush_secs": -1}, r"flush_secs=-1"),
        ({"flush_secs": "fast"}, r"flush_secs='fast'"),
        ({"max_queues": 3}, r"'max_queues'\. Did you mean 'max_queue'\?"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """The error has the value, or the argument that was meant."""
    with pytest.raises(MisconfigurationError, match=message):
        TensorBoardLogger(tmp_path, **arguments)
