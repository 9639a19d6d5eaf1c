"""The messages that TensorBoard's HParams tab is drawn from, built from the `tensorboard` package's message
types alone.

A run tells its hyperparameters and the metrics to compare runs by when it starts, and how it ended when it
ends. TensorBoard keeps the first message of each kind that it finds in a directory and ignores later ones.
Values are numbers, strings and booleans; None is left out. The names below are the tab's file format.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_EXPERIMENT = "_hparams_/experiment"
_SESSION_START = "_hparams_/session_start_info"
_SESSION_END = "_hparams_/session_end_info"


def run_started(params: Mapping[str, bool | int | float | str | None], metrics: Iterable[str]) -> Event:
    """Return the event that opens a run with flat `params`, to be compared by the scalars named `metrics`."""
    from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    now = time.time()
    session = SessionStartInfo(start_time_secs=now)
    infos = []
    for name, value in params.items():
        if value is None:
            continue
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
            kind = DataType.DATA_TYPE_BOOL
        elif isinstance(value, str):
            session.hparams[name].string_value = value
            kind = DataType.DATA_TYPE_STRING
        else:
            session.hparams[name].number_value = value
            kind = DataType.DATA_TYPE_FLOAT64
        infos.append(HParamInfo(name=name, type=kind))
    experiment = Experiment(
        time_created_secs=now,
        hparam_infos=infos,
        metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in metrics],
    )
    return _event(
        {
            _EXPERIMENT: HParamsPluginData(experiment=experiment),
            _SESSION_START: HParamsPluginData(session_start_info=session),
        }
    )


def run_ended(*, succeeded: bool) -> Event:
    """Return the event that closes a run."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.STATUS_SUCCESS if succeeded else Status.STATUS_FAILURE
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return _event({_SESSION_END: HParamsPluginData(session_end_info=end)})


def _event(contents: Mapping[str, Any]) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    values = [
        Summary.Value(
            tag=tag,
            tensor=nothing,
            metadata=SummaryMetadata(
                plugin_data=SummaryMetadata.PluginData(
                    plugin_name="hparams", content=content.SerializeToString()
                )
            ),
        )
        for tag, content in contents.items()
    ]
    return Event(wall_time=time.time(), summary=Summary(value=values))
