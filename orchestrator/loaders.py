"""The data of one call: found, checked, shared among ranks, and loaded when it is first needed.

Loaders come from the call's arguments, else from the data module, else from the module. Each is made one
rank's view; several are read together or one after the other. Asking again gives the same objects until
`reload`. What cannot be read, has no batch, or does not fit the call is a `MisconfigurationError` that names
the kind of data; for loaders that were given, `check_source` raises it before anything starts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modules import rng
from modules.combined import CombinedLoader
from modules.combined_reading import CombinedRankLoader, Reader
from modules.loader import RankLoader
from modules.module import LightningModule
from modules.rank_streams import RankStreams
from orchestrator.announcements import announce_data
from orchestrator.batch_limits import batch_limit, empty_loader
from orchestrator.checkpoint import contents
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import overrides
from orchestrator.loader_forms import Form, check_source, form_of, may_be_empty
from orchestrator.overfitting import in_order

if TYPE_CHECKING:
    from orchestrator.engine import Engine

_ENTRY = {"train": "fit", "val": "validate"}


class Loaders:
    """What one call reads.

    Args:
        engine: The run.

    Attributes:
        train: The training data; None until it is loaded.
        val: What validation within fit reads; empty until loaded, and without validation.
        val_limits: At most so many batches of each; None for all.
        sources: The loaders of each kind of data as the user made them, once loaded.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.train: Reader | None = None
        self.val: list[Reader] = []
        self.val_limits: list[int | None] = []
        self.sources: dict[str, Any] = {}
        self._train_form: Form | None = None
        self._forms: dict[int, tuple[Reader, Form, str]] = {}  # of evaluations, by reader
        self._streams: dict[int, RankStreams] = {}
        self._val_is_loaded = False

    # ---------------------------------------------------------------- training and validation of fit

    def load_training(self) -> Reader:
        """Load the training data, unless that was done, and return it."""
        if self.train is None:
            self._train_form = form_of(self._source("train"), "train")
            self.train = self._together(self._train_form, "train")
            if self._engine.logical is not None:
                self._engine.logical.refuse_data(self.train, "train")
            self._count("train", [self.train], [self.limit("train", self.train)])
        return self.train

    def training_readers(self) -> list[Reader]:
        """Return a view of the training data for each logical rank of this process."""
        engine = self._engine
        self.load_training()
        assert engine.logical is not None and self._train_form is not None
        readers = [self._together(self._train_form, "train", rank) for rank in engine.logical.hosted]
        self.train = readers[0]
        return readers

    def evaluation_streams(self, reader: Reader) -> RankStreams:
        """Return the data of an evaluation's loader for each logical rank of this process."""
        engine = self._engine
        found = self._streams.get(id(reader))
        if found is None:
            assert engine.logical is not None
            _, form, kind = self._forms[id(reader)]
            readers = [self._together(form, kind, rank) for rank in engine.logical.hosted]
            found = self._streams[id(reader)] = RankStreams(readers, engine.order_seed)
        return found

    def forget_streams(self) -> None:
        """Let each logical rank that is hosted from now on read evaluations anew."""
        self._streams.clear()

    def forget_training(self) -> bool:
        """Drop training data that was loaded early, for an estimate; return whether there was any."""
        loaded, self.train = self.train is not None, None
        self._engine.trainer.batch_counts.pop("train", None)
        return loaded

    def has_validation(self) -> bool:
        """Whether fit validates: there is a validation step, data for it, and no limit of 0."""
        engine = self._engine
        given = engine.job.loaders.get("val") is not None
        return (
            (given or engine.hooks.data_hook("val_dataloader") is not None)
            and engine.settings.limit_val_batches != 0
            and overrides(engine.module, "validation_step", LightningModule)
        )

    def load_validation(self) -> None:
        """Load the validation data of fit, unless that was done; a hook that returns None has none."""
        if not self._val_is_loaded and self.has_validation():
            self._val_is_loaded = True
            self.val, self.val_limits = self._load("val", optional=True)

    def load_for_fit(self) -> None:
        """Load what training and its validation read, and check that a resumed run goes on with its own data.

        What the loaders' hooks draw at the start of an epoch in which data is reloaded, an uninterrupted run
        draws after the state that its checkpoint holds; so does the resumed one. In later epochs the hooks
        see the epoch in which the uninterrupted run had asked them.
        """
        engine = self._engine
        resumed, state = engine.resumed, engine.state
        if resumed is not None and not state.epoch_batches and self.is_reloaded_in(state.epoch):
            rng.restore(resumed.reading.rng)
            self.reload()
            reading = replace(resumed.reading, rng=rng.capture(), generators=[], own={})
            engine.resumed = replace(resumed, reading=reading)
            return
        every, epoch = engine.settings.reload_dataloaders_every_n_epochs, state.epoch
        if resumed is not None and every:
            state.epoch -= epoch % every
        try:
            train = self.load_training()
            self.load_validation()
        finally:
            state.epoch = epoch
        if resumed is not None:
            if state.accumulate and state.epoch_batches:
                engine.accumulate = resumed.accumulate
            contents.check_data(resumed, train, state, engine.accumulate)

    def is_reloaded_in(self, epoch: int) -> bool:
        """Whether loaders are asked for anew before `epoch`; counted from epoch 0, also in a resumed run."""
        every = self._engine.settings.reload_dataloaders_every_n_epochs
        return every > 0 and epoch > 0 and epoch % every == 0

    def reload(self) -> None:
        """Ask for training and validation data anew."""
        self.train = None
        self.load_training()
        self._val_is_loaded = False
        self.load_validation()

    # ---------------------------------------------------------------- evaluation

    def load(self, kind: str) -> tuple[list[Reader], list[int | None]]:
        """Load the data of an evaluation; return its loaders and at most how many batches of each to run.

        Args:
            kind: val, test or predict.
        """
        return self._load(kind)

    def _load(self, kind: str, *, optional: bool = False) -> tuple[list[Reader], list[int | None]]:
        source = self._source(kind, optional=optional)
        if source is None:
            return [], []
        form = form_of(source, kind)
        readers: list[Reader]
        forms = [form]
        if form.mode == "sequential":
            readers = [self._alone(member, kind, name) for name, member in form.members]
            forms = [replace(form, mode="", members=(member,), combined=None) for member in form.members]
        else:
            readers = [self._together(form, kind)]
        if self._engine.logical is not None:
            for reader, own in zip(readers, forms, strict=True):
                self._engine.logical.refuse_data(reader, kind)
                self._forms[id(reader)] = reader, own, kind
        limits = [self.limit(kind, reader) for reader in readers]
        self._count(kind, readers, limits)
        return readers, limits

    def limit(self, kind: str, reader: Reader) -> int | None:
        """Return at most how many batches of `reader` are run; None for all of an unknown number."""
        name = f"limit_{kind}_batches"
        return batch_limit(self._argument(kind), getattr(self._engine.settings, name), reader.num_batches)

    # ---------------------------------------------------------------- one loader

    def _source(self, kind: str, *, optional: bool = False) -> Any:
        """Return the loaders of a kind: as given, else the data module's, else the module's."""
        engine = self._engine
        found = engine.job.loaders.get(kind)
        if found is None:
            name = f"{kind}_dataloader"
            hook = engine.hooks.data_hook(name)
            engine.slots.enter(name)
            found = hook() if hook is not None else None
            if found is not None:
                check_source(found, kind, engine.place.world_size, sent=False)
                if engine.is_global_zero:
                    announce_data({kind: found})
        if found is None and not optional:
            raise MisconfigurationError(
                f"There is no {kind} data: {type(engine.module).__qualname__} has no {kind}_dataloader(), "
                "and none was given. "
                f"Pass a loader or a datamodule to {_ENTRY.get(kind, kind)}(), or define {kind}_dataloader()."
            )
        self.sources[kind] = found.iterables if isinstance(found, CombinedLoader) else found
        return found

    def _together(self, form: Form, kind: str, rank: int | None = None) -> Reader:
        """Return the view of several loaders that are read together; that of a lone one is its own."""
        members = [self._alone(member, kind, name, rank) for name, member in form.members]
        if form.combined is None:
            return members[0]
        ranks = self._engine.place.world_size
        if not members:
            raise empty_loader(form.combined.iterables, kind, ranks)
        return CombinedRankLoader(form.combined, members, ranks)

    def _alone(self, source: Any, kind: str, name: str, rank: int | None = None) -> RankLoader:
        engine = self._engine
        settings, place, logical = engine.settings, engine.place, engine.logical
        if rank is None:
            rank = place.rank if logical is None else logical.shown
        if settings.overfit_batches and kind in ("train", "val"):
            source = in_order(source, kind, tells=engine.is_global_zero)
        loader = RankLoader(
            source,
            rank=rank,
            world_size=place.world_size,
            seed=engine.order_seed,
            shard=settings.use_distributed_sampler,
            pad=kind == "train" and settings.pad_uneven,
            whole_batches=kind == "predict",
            keyed=bool(settings.deterministic) or logical is not None,
            pickler=place.pickler,
        )
        wanted = getattr(settings, f"limit_{kind}_batches") != 0 and not self._may_be_empty()
        if loader.num_batches == 0 and wanted:
            raise empty_loader(source, kind, place.world_size, name)
        engine.take_loader(loader, kind)
        return loader

    def _may_be_empty(self) -> bool:
        return any(may_be_empty(owner) for owner in (self._engine.datamodule, self._engine.module))

    def _argument(self, kind: str) -> str:
        """Return the name of the argument that limits a kind of data, as the user wrote it."""
        overfits = self._engine.settings.overfit_batches and kind in ("train", "val")
        return "overfit_batches" if overfits else f"limit_{kind}_batches"

    def _count(self, kind: str, readers: list[Reader], limits: list[int | None]) -> None:
        """Note for the trainer how many batches there are."""
        self._engine.trainer.batch_counts[kind] = [
            math.inf if limit is None else limit for _, limit in zip(readers, limits, strict=True)
        ]
