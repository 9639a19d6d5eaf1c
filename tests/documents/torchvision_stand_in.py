"""The few names of torchvision that the articles import, over scikit-learn's digits: nothing is downloaded.

`MNIST` has the lengths, shapes and types of the original; its images repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset


@cache
def _digits() -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """All digits as 28 x 28 images of bytes, and their labels."""
    digits = load_digits()
    images = numpy.kron(digits.images, numpy.ones((3, 3))) * (255 / 16)
    return numpy.pad(images, ((0, 0), (2, 2), (2, 2))).astype(numpy.uint8), digits.target


class MNIST(Dataset[Any]):
    """60,000 images to train with and 10,000 to test, as arrays of bytes before `transform`."""

    def __init__(
        self,
        root: str,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        self.root, self.train, self.transform = root, train, transform

    def __len__(self) -> int:
        return 60_000 if self.train else 10_000

    def __getitem__(self, index: int) -> tuple[Any, int]:
        images, labels = _digits()
        place = index % 1_500 if self.train else 1_500 + index % 297
        image = images[place]
        return (image if self.transform is None else self.transform(image)), int(labels[place])


class ToTensor:
    """Bytes from 0 to 255 become a tensor of shape (1, height, width) from 0 to 1."""

    def __call__(self, image: numpy.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(image).float().div(255).unsqueeze(0)


class Normalize:
    """Subtract the mean of each channel and divide by its deviation."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class Compose:
    """One after the other."""

    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


datasets = SimpleNamespace(MNIST=MNIST)
transforms = SimpleNamespace(Compose=Compose, Normalize=Normalize, ToTensor=ToTensor)
