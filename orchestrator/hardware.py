"""What ``Trainer(accelerator=..., devices=...)`` may say.

Pure: nothing is looked up on the machine; whether it has what is asked for is the plan's business. Names are
taken in any case. What cannot be is a `MisconfigurationError` that says what to write.
"""

from __future__ import annotations

from typing import Any

from orchestrator.errors import MisconfigurationError, suggest

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
_REFUSED = {"tpu": "TPUs", "hpu": "HPUs", "ipu": "IPUs", "xla": "XLA devices"}
_DEVICES = "Use a whole number of at least 1, 'auto', or on GPUs a list of their numbers like [0, 1]."


def parse_accelerator(value: Any) -> str:
    """Return the accelerator in lower case.

    Raises:
        MisconfigurationError: There is no such accelerator, or it is not supported.
    """
    name = value.lower() if isinstance(value, str) else value
    if name in ACCELERATORS:
        return str(name)
    if isinstance(name, str) and name in _REFUSED:
        raise MisconfigurationError(
            f"Trainer(accelerator={value!r}): {_REFUSED[name]} are not supported. "
            f"Use one of {', '.join(ACCELERATORS)}."
        )
    raise MisconfigurationError(
        f"Trainer(accelerator={value!r}) is unknown.{suggest(name, ACCELERATORS)} "
        f"Use one of {', '.join(ACCELERATORS)}."
    )


def parse_devices(value: Any, accelerator: str) -> int | str | tuple[int, ...]:
    """Return a number of devices, ``"auto"``, or the numbers of GPUs.

    Args:
        value: An int, ``"auto"``, -1 for auto, a list of ids, or any of them as text: ``"2"``, ``"0,1"``.
        accelerator: As `parse_accelerator` returns it; ids are for GPUs.

    Raises:
        MisconfigurationError: It is none of these.
    """
    found = value
    if isinstance(found, str) and "," in found:
        parts = [part.strip() for part in found.split(",") if part.strip()]
        found = [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None
    elif isinstance(found, str) and found.strip().lstrip("-").isdecimal():
        found = int(found)
    if found == "auto" or (_is_whole(found) and found == -1):
        return "auto"
    if _is_whole(found) and found >= 1:
        return int(found)
    if isinstance(found, (list, tuple)) and found and all(_is_whole(item) and item >= 0 for item in found):
        if accelerator == "cpu":
            raise MisconfigurationError(
                f"Trainer(accelerator='cpu', devices={value!r}): CPUs have no numbers. "
                f"Use devices={len(found)} for {len(found)} processes."
            )
        if len(set(found)) != len(found):
            raise MisconfigurationError(f"Trainer(devices={value!r}) names a GPU twice. Name each once.")
        return tuple(int(item) for item in found)
    raise MisconfigurationError(f"Trainer(devices={value!r}). {_DEVICES}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
