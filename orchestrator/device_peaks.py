"""How many floating-point operations a second a device can do at most, by the maker's data sheets.

Dense matrix products, no sparsity, on tensor cores where the number format has them. The names are those that
torch reports. A device that is not listed is unknown rather than guessed.
"""

from __future__ import annotations

import torch

_TERA = 1e12
_HALF = ("16", "bf16")
# By part of the name, the more special first: float32, TF32 and 16-bit, in 10**12 operations a second.
_PEAKS: tuple[tuple[str, float, float, float], ...] = (
    ("b200", 75, 1125, 2250),
    ("gh200", 67, 494.7, 989.4),
    ("h200", 67, 494.7, 989.4),
    ("h100 nvl", 60, 417.5, 835),
    ("h100 pcie", 51, 378, 756),
    ("h100", 67, 494.7, 989.4),
    ("a100", 19.5, 156, 312),
    ("a800", 19.5, 156, 312),
    ("a10g", 35, 35, 70),
    ("a10", 31.2, 62.5, 125),
    ("a30", 10.3, 82, 165),
    ("a40", 37.4, 74.8, 149.7),
    ("l40s", 91.6, 183, 362),
    ("l40", 90.5, 90.5, 181),
    ("l4", 30.3, 60, 121),
    ("rtx a6000", 38.7, 77.4, 154.8),
    ("rtx 6000 ada", 91.1, 182.1, 364.2),
    ("rtx 5090", 104.8, 104.8, 209.5),
    ("rtx 4090", 82.6, 82.6, 165.2),
    ("rtx 4080", 48.7, 48.7, 97.5),
    ("rtx 3090 ti", 40, 40, 80),
    ("rtx 3090", 35.6, 35.6, 71),
    ("rtx 3080", 29.8, 29.8, 59.5),
    ("v100-sxm", 15.7, 15.7, 125),
    ("v100-pcie", 14, 14, 112),
    ("v100", 14, 14, 112),
    ("rtx 2080 ti", 13.4, 13.4, 53.8),
    ("titan rtx", 16.3, 16.3, 65.2),
    ("t4", 8.1, 8.1, 65),
)


def peak_flops(device_name: str, precision: str, *, tf32: bool = False) -> float | None:
    """Return the operations a second that a device can do at most, or None for one that is not listed.

    Args:
        device_name: As torch reports it, such as ``"NVIDIA A100-SXM4-40GB"``.
        precision: The trainer's, such as ``"bf16-mixed"`` or ``"32-true"``.
        tf32: Whether float32 products may use TF32.

    >>> peak_flops("NVIDIA A100-SXM4-40GB", "bf16-mixed")
    312000000000000.0
    """
    name = device_name.lower().replace("geforce ", "")
    words = name.replace("nvidia ", "").replace("tesla ", "")
    for key, plain, fast, half in _PEAKS:
        at = words.find(key)
        if at < 0 or (at > 0 and words[at - 1].isalnum()):
            continue
        after = words[at + len(key) : at + len(key) + 1]
        if key[-1].isdigit() and after.isdigit():
            continue
        if precision.startswith(_HALF):
            return half * _TERA
        if precision.startswith("32"):
            return (fast if tf32 else plain) * _TERA
        return None
    return None


def available_flops(device: torch.device, precision: str) -> float | None:
    """Return the most operations a second of the device that a run computes on, or None where not known."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_flops(torch.cuda.get_device_name(device), precision, tf32=tf32)
