"""How much a run gets through: batches, samples, items and floating-point operations a second.

`Throughput` only does sums over what it is told, in a moving window; it reads no clock and no device, so the
caller decides what a second is. `measure_flops` counts the operations of one pass, on any device, the meta
device included. Totals must not shrink: that is a `ValueError`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Throughput:
    """Rates over the last `window_size` updates.

    Args:
        available_flops: Operations a second that one device can do at most; without it there is no ``mfu``.
        world_size: Devices; with more than one there are global rates too, taken as so many times this one's.
        window_size: Updates that a rate looks back on; rates appear when there are as many.
        separator: What stands between ``device`` and a name.

    Raises:
        ValueError: An argument cannot work.
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        for name, value, least in (("world_size", world_size, 1), ("window_size", window_size, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Throughput({name}={value!r}). Use a whole number of at least {least}.")
        if available_flops is not None and not available_flops > 0:
            raise ValueError(
                f"Throughput(available_flops={available_flops!r}). Use a number above 0, or None."
            )
        self.available_flops = available_flops
        self.world_size = world_size
        self.window_size = window_size
        self.separator = separator
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._totals: deque[tuple[float, int, int, int | None]] = deque(maxlen=self.window_size)
        self._flops: deque[int] = deque(maxlen=self.window_size)

    def update(
        self,
        *,
        time: float,
        batches: int,
        samples: int,
        lengths: int | None = None,
        flops: int | None = None,
    ) -> None:
        """Take note of where the run stands.

        Args:
            time: Seconds since the start.
            batches: Batches since the start, on this device.
            samples: Samples since the start, on this device.
            lengths: Items, tokens say, since the start, on this device.
            flops: Operations since the last update, on this device.

        Raises:
            ValueError: A total is less than before.
        """
        now = (time, batches, samples, lengths)
        if self._totals:
            for name, before, value in zip(
                ("time", "batches", "samples", "lengths"), self._totals[-1], now, strict=True
            ):
                if (before is None) != (value is None) or (
                    before is not None and value is not None and value < before
                ):
                    raise ValueError(
                        f"Throughput.update({name}={value!r}) after {before!r}. Give totals since the start, "
                        "or call reset."
                    )
        self._totals.append(now)
        if flops is not None:
            self._flops.append(flops)

    @property
    def elapsed_s(self) -> float:
        """Seconds of the last update; 0 before the first."""
        return self._totals[-1][0] if self._totals else 0.0

    def compute(self) -> dict[str, float]:
        """Return the totals, and once the window is full the rates, of this device and of all."""
        if not self._totals:
            return {}
        time, batches, samples, lengths = self._totals[-1]
        found: dict[str, float] = {"time": time, "batches": batches, "samples": samples}
        if lengths is not None:
            found["lengths"] = lengths
        first = self._totals[0]
        elapsed = time - first[0]
        if len(self._totals) < self.window_size or elapsed <= 0:
            return found
        rates = {
            "batches_per_sec": (batches - first[1]) / elapsed,
            "samples_per_sec": (samples - first[2]) / elapsed,
        }
        if lengths is not None and first[3] is not None:
            rates["items_per_sec"] = (lengths - first[3]) / elapsed
        if len(self._flops) == self.window_size:
            rates["flops_per_sec"] = sum(list(self._flops)[1:]) / elapsed
        for name, rate in rates.items():
            found[f"device{self.separator}{name}"] = rate
            if self.world_size > 1:
                found[name] = rate * self.world_size
        if self.available_flops and "flops_per_sec" in rates:
            found[f"device{self.separator}mfu"] = rates["flops_per_sec"] / self.available_flops
        return found


def measure_flops(
    model: nn.Module,
    forward_fn: Callable[[], Tensor],
    loss_fn: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Return the floating-point operations of a forward pass, and of backward too where there is a loss.

    Args:
        model: On any device; on the meta device nothing is computed.
        forward_fn: Runs the forward pass and returns its output.
        loss_fn: Makes a loss of the output; then backward is counted as well.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model, batch = nn.Linear(4, 2), torch.randn(8, 4)
    >>> measure_flops(model, lambda: model(batch))
    128
    """
    counter = FlopCounterMode(display=False)
    with counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()
    if loss_fn is not None:
        model.zero_grad()
    return int(counter.get_total_flops())
