"""Building a module from a checkpoint: arguments from the file and from the caller, then the weights."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modules import LightningModule
from modules.checkpoint import CheckpointError
from modules.checkpoint.format import plain
from modules.checkpoint.hyperparameters import content_of


class Net(LightningModule):
    def __init__(self, width: int, depth: int = 1, kind: str = "relu") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


class Open(Net):
    """Takes anything, and passes on what its base knows."""

    def __init__(self, extra: str, **rest: Any) -> None:
        super().__init__(**{name: value for name, value in rest.items() if name != "other"})
        self.given = rest


class Held(LightningModule):
    """Is given everything in one object, and one thing beside it."""

    def __init__(self, config: Any, bias: bool = True, *ignored: Any) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.save_hyperparameters("bias")
        self.layer = nn.Linear(config.width, config.width, bias=bias)


class Late(LightningModule):
    """Builds its layers in `configure_model`, and records what is called when."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def configure_model(self) -> None:
        self.calls.append("configure_model")
        self.layer = nn.Linear(2, 2)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.calls.append(f"on_load_checkpoint with {checkpoint['note']}")
        checkpoint["state_dict"] = {
            name: torch.ones(2, 2) if "w" in name else torch.zeros(2) for name in checkpoint["state_dict"]
        }


def save(module: LightningModule, path: Path, **more: Any) -> Path:
    """Write what a Trainer writes of a module."""
    dropped: list[str] = []
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": plain(dict(module.hparams), "hparams", dropped),
        "hparams_name": module._hparams_name,
        **more,
    }
    torch.save(content, path)
    return path


def equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def net(tmp_path: Path) -> tuple[Net, Path]:
    """A module and its checkpoint."""
    module = Net(3, depth=2)
    return module, save(module, tmp_path / "net.ckpt")


def test_arguments_and_weights_come_from_the_file(net: tuple[Net, Path]) -> None:
    """The class's own hyperparameters build it, and its weights are those that were saved."""
    module, path = net
    for place in (path, str(path)):
        loaded = Net.load_from_checkpoint(place)
        assert type(loaded) is Net
        assert equal(loaded, module)
        assert loaded.hparams == {"width": 3, "depth": 2, "kind": "relu"}


def test_keyword_arguments_win(net: tuple[Net, Path]) -> None:
    """What the caller gives is used instead of what the file holds."""
    assert Net.load_from_checkpoint(net[1], kind="gelu").hparams.kind == "gelu"


def test_unknown_arguments_are_refused(net: tuple[Net, Path]) -> None:
    """A misspelt argument is an error that lists what the class takes."""
    with pytest.raises(TypeError, match=r"Net takes no argument \['knid'\]. It takes \['depth', 'kind', 'w"):
        Net.load_from_checkpoint(net[1], knid="gelu")


def test_what_the_class_does_not_take_is_left_in_the_file(tmp_path: Path) -> None:
    """Hyperparameters that the constructor has no argument for are left out, unless it takes any."""
    module = Net(3)
    module.hparams["other"] = 5
    path = save(module, tmp_path / "net.ckpt")
    assert equal(Net.load_from_checkpoint(path), module)
    loaded = Open.load_from_checkpoint(path, extra="x")
    assert equal(loaded, module)
    assert loaded.given == {"width": 3, "depth": 1, "kind": "relu", "other": 5}


def test_missing_arguments_are_named(tmp_path: Path) -> None:
    """What neither file nor caller gives is named, with what the file holds and what can be done."""
    path = tmp_path / "bare.ckpt"
    torch.save({"state_dict": Net(3).state_dict()}, path)
    with pytest.raises(TypeError, match=r"Net needs \['width'\].*holds only \[\].*\(path, width=\.\.\.\)"):
        Net.load_from_checkpoint(path)
    assert Net.load_from_checkpoint(path, width=3).hparams.width == 3


@pytest.mark.parametrize(
    "config",
    [argparse.Namespace(width=3, rate=0.1), argparse.Namespace(width=3, config=4, rate=0.1)],
)
def test_one_object_of_hyperparameters_comes_back_as_one(config: Any, tmp_path: Path) -> None:
    """What was saved from one argument is given to that argument, with attributes, beside other arguments."""
    module = Held(config, bias=False)
    if hasattr(config, "config"):  # then the name means the member, and the object must be given
        path = save(module, tmp_path / "held.ckpt")
        loaded = Held.load_from_checkpoint(path, config=config)
    else:
        loaded = Held.load_from_checkpoint(save(module, tmp_path / "held.ckpt"))
    assert equal(loaded, module)
    assert loaded.hparams == module.hparams
    assert (
        Held.load_from_checkpoint(
            tmp_path / "held.ckpt", config=argparse.Namespace(width=3, rate=0.2)
        ).hparams.rate
        == 0.2
    )


def test_a_yaml_file_replaces_the_hyperparameters(net: tuple[Net, Path], tmp_path: Path) -> None:
    """Given `hparams_file`, the checkpoint's hyperparameters do not count; keyword arguments still win."""
    file = tmp_path / "hparams.yaml"
    file.write_text("width: 3\ndepth: 2\nkind: tanh\n")
    assert Net.load_from_checkpoint(net[1], hparams_file=file).hparams.kind == "tanh"
    assert Net.load_from_checkpoint(net[1], hparams_file=str(file), kind="elu").hparams.kind == "elu"
    file.write_text("")
    with pytest.raises(TypeError, match=r"Net needs \['width'\]"):
        Net.load_from_checkpoint(net[1], hparams_file=file)


def test_a_yaml_file_of_something_else_is_refused(net: tuple[Net, Path], tmp_path: Path) -> None:
    """A file without names and values is an error that says how to write it."""
    file = tmp_path / "hparams.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match=r"holds a list\. Write one `name: value` a line"):
        Net.load_from_checkpoint(net[1], hparams_file=file)


def test_names_of_weights_must_agree_unless_told_otherwise(net: tuple[Net, Path]) -> None:
    """`strict` says whether missing and unexpected weights are errors; by default the module says it."""

    class Lenient(Net):
        strict_loading = False

    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"layers.1"):
        Net.load_from_checkpoint(net[1], depth=1)
    for loaded in (
        Net.load_from_checkpoint(net[1], depth=1, strict=False),
        Lenient.load_from_checkpoint(net[1], depth=1),
    ):
        assert torch.equal(loaded.layers[0].weight, net[0].layers[0].weight)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Lenient.load_from_checkpoint(net[1], depth=1, strict=True)


def test_hooks_run_before_the_weights_are_loaded(tmp_path: Path) -> None:
    """`configure_model` builds the layers, then `on_load_checkpoint` may change what is loaded."""
    module = Late()
    module.configure_model()
    loaded = Late.load_from_checkpoint(save(module, tmp_path / "late.ckpt", note="regards"))
    assert loaded.calls == ["configure_model", "on_load_checkpoint with regards"]
    assert torch.equal(loaded.layer.weight, torch.ones(2, 2))


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """A missing file and a damaged one are errors of their own, before anything is built."""
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*absent.ckpt"):
        Net.load_from_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        Net.load_from_checkpoint(tmp_path / "damaged.ckpt")


def test_the_instance_is_where_the_weights_were_mapped_to(net: tuple[Net, Path]) -> None:
    """`map_location` is the device of the instance that is returned."""
    assert Net.load_from_checkpoint(net[1], map_location=torch.device("cpu")).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_instance_can_be_loaded_onto_a_gpu(net: tuple[Net, Path]) -> None:
    """With a CUDA `map_location` the instance is on that device, with the saved weights."""
    loaded = Net.load_from_checkpoint(net[1], map_location="cuda:0")
    assert loaded.device == torch.device("cuda:0")
    assert equal(loaded.cpu(), net[0])


class Kind(enum.Enum):
    RELU = "relu"


@dataclasses.dataclass
class Layers:
    width: int = 3
    kind: Kind = Kind.RELU


@dataclasses.dataclass
class Config:
    layers: Layers
    rate: float = 0.1


class Annotated(LightningModule):
    """Says by annotations what its arguments are."""

    def __init__(
        self,
        config: Config,
        kind: Kind | None = None,
        folder: Path | str | None = None,
        place: Path | None = None,
        options: argparse.Namespace | None = None,
        nested: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(config.layers.width, 1)


def test_annotations_say_what_comes_back(tmp_path: Path) -> None:
    """Dataclasses, enums, paths and namespaces are made by the constructor's annotations; other dictionaries
    can be read by attribute.
    """
    module = Annotated(
        Config(Layers(width=5), rate=0.2),
        kind=Kind.RELU,
        folder="text",
        place=tmp_path,
        options=argparse.Namespace(a=1),
        nested={"optimizer": {"lr": 0.1}},
    )
    content, dropped = {"state_dict": module.state_dict()}, list[str]()
    content.update(content_of(module, "", dropped))
    torch.save(content, tmp_path / "a.ckpt")
    loaded = Annotated.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dropped == []
    assert loaded.hparams == module.hparams
    assert loaded.hparams.nested.optimizer.lr == 0.1
    assert isinstance(loaded.hparams.config.layers, Layers)
    assert type(loaded.hparams.folder) is str


def test_what_cannot_be_kept_is_named_and_can_be_given(tmp_path: Path) -> None:
    """A hyperparameter of a class of one's own is left out by name, and given again when loading."""

    class Own(LightningModule):
        def __init__(self, net: nn.Module, rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = net

    module, dropped = Own(nn.Linear(2, 1)), list[str]()
    content = {"state_dict": module.state_dict(), **content_of(module, "", dropped)}
    torch.save(content, tmp_path / "a.ckpt")
    assert dropped == ["hparams.net (Linear)"]
    with pytest.raises(TypeError, match=r"Own needs \['net'\].*net=\.\.\."):
        Own.load_from_checkpoint(tmp_path / "a.ckpt")
    assert equal(Own.load_from_checkpoint(tmp_path / "a.ckpt", net=nn.Linear(2, 1)), module)


def test_an_open_file_can_be_given(net: tuple[Net, Path]) -> None:
    """A binary file or buffer is read like a path."""
    with open(net[1], "rb") as file:
        assert equal(Net.load_from_checkpoint(file), net[0])
    assert equal(Net.load_from_checkpoint(io.BytesIO(net[1].read_bytes())), net[0])


def test_a_csv_file_of_hyperparameters(net: tuple[Net, Path], tmp_path: Path) -> None:
    """A table of the columns key and value is read, numbers as numbers; others are refused."""
    file = tmp_path / "hparams.csv"
    file.write_text("key,value\nwidth,3\ndepth,2\nkind,tanh\n")
    assert Net.load_from_checkpoint(net[1], hparams_file=file).hparams == {
        "width": 3,
        "depth": 2,
        "kind": "tanh",
    }
    file.write_text("width,3\n")
    with pytest.raises(ValueError, match="Write the line `key,value`"):
        Net.load_from_checkpoint(net[1], hparams_file=file)
    with pytest.raises(ValueError, match="neither YAML nor CSV"):
        Net.load_from_checkpoint(net[1], hparams_file=tmp_path / "hparams.json")
    (tmp_path / "tags.yaml").write_text("width: !!python/object:os.system {}\n")
    with pytest.raises(ValueError, match="without tags of Python objects"):
        Net.load_from_checkpoint(net[1], hparams_file=tmp_path / "tags.yaml")


def test_arguments_that_cannot_work_are_refused(net: tuple[Net, Path]) -> None:
    """URLs, weights_only=False, and a call on an instance are errors that say what to write."""
    with pytest.raises(ValueError, match=r"is a URL\. Fetch the file first"):
        Net.load_from_checkpoint("https://example.com/a.ckpt")
    with pytest.raises(ValueError, match="would run code from the file"):
        Net.load_from_checkpoint(net[1], weights_only=False)
    with pytest.raises(TypeError, match=r"on an instance of Net.*Write model = Net.load_from_checkpoint"):
        net[0].load_from_checkpoint(net[1])
    assert equal(Net.load_from_checkpoint(net[1], weights_only=True), net[0])


def test_keys_of_the_first_versions(tmp_path: Path) -> None:
    """Hyperparameters are found where Lightning kept them before 1.0, and the later key wins."""
    content = {
        "state_dict": Net(3).state_dict(),
        "module_arguments": {"width": 3},
        "hparams": argparse.Namespace(width=7, kind="old"),
        "hyper_parameters": {"kind": "new"},
    }
    torch.save(content, tmp_path / "old.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "old.ckpt")
    assert loaded.hparams == {"width": 3, "depth": 1, "kind": "new"}
