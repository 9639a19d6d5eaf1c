"""The worker processes of a DataLoader on a group: never forked, and given by value what they cannot import.

A rank's process holds threads of Gloo and of the store, and forking it hangs now and then; so loader
processes come from a fork server, which has loaded torch and the pickler once for all of them. What they are
given (data set, collate function, ...) is pickled on the way. Classes of the user's script live in a rank's
process without being importable from anywhere, so plain pickle refuses them; a pickler that takes them by
value can be given. Tensors stay in shared memory either way. What cannot be pickled at all fails with a
`PicklingError` that says what to do.
"""

from __future__ import annotations

import io
import multiprocessing.context
import pickle
from collections import ChainMap
from collections.abc import MutableMapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

_PRELOADED = ["__main__", "torch.utils.data"]


class LoaderContext(multiprocessing.context.ForkServerContext):
    """A fork server for loader processes, whose arguments go through a pickler of one's own.

    Args:
        pickler: A class like `pickle.Pickler`; what it writes is read by plain pickle.
    """

    def __init__(self, pickler: type[Any] | None = None) -> None:
        super().__init__()
        self.pickler = pickler or pickle.Pickler
        self.set_forkserver_preload([*_PRELOADED, self.pickler.__module__])

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return a process that is not started yet; arguments as of `multiprocessing.Process`."""
        process = _Process(*args, **kwargs)
        process.pickler = self.pickler
        return process


class _Process(multiprocessing.context.ForkServerProcess):
    """A process whose arguments travel as a `_Parcel`."""

    pickler: type[Any]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_args"] = _Parcel(state["_args"], state.pop("pickler"))
        return state


class _Parcel:
    """A value that arrives as itself, packed by the given pickler."""

    def __init__(self, value: object, pickler: type[Any]) -> None:
        self.value = value
        self.pickler = pickler

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        # First, how queues, connections and shared tensors reach a process that is being started. The table
        # stands in the class, because a pickler looks for it while it is built.
        tables: list[Any] = [ForkingPickler(buffer).dispatch_table]
        own = getattr(self.pickler, "dispatch_table", None)
        if isinstance(own, MutableMapping):
            tables.append(own)
        packer = type("Packer", (self.pickler,), {"dispatch_table": ChainMap(*tables)})
        try:
            packer(buffer, pickle.HIGHEST_PROTOCOL).dump(self.value)
        except Exception as error:
            raise pickle.PicklingError(
                f"What a DataLoader's worker processes need cannot be sent to them: {error}. Create it where "
                "it is used (open files in __getitem__), or use num_workers=0, or "
                'multiprocessing_context="fork" at the risk of a hang.'
            ) from error
        return pickle.loads, (buffer.getvalue(),)
