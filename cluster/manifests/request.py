"""What a manifest asks for: how many workers, how large, and what they run.

Nothing is rounded or filled up in silence; what cannot be is a `SpecError` that names the argument of
``orchestrator manifest``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.errors import SpecError

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_TIME = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """The cluster that is wanted.

    Attributes:
        name: Of the job and the cluster: small letters, digits and hyphens.
        workers: Nodes that train.
        cpus: Of each.
        gpus: Of each.
        memory_gib: Of each.
        image: The container image, with this project and your code in it; not for Slurm.
        time: The longest that it may take, as ``[D-]HH:MM:SS``; for Slurm.
        provider: ``local``, ``aws``, ``gcp`` or ``azure``; for Ray's cluster launcher.
        entrypoint: The command, as a shell understands it.
        ray_version: The version of Ray in the image.
    """

    name: str
    workers: int
    cpus: int
    gpus: int
    memory_gib: int
    image: str
    time: str
    provider: str
    entrypoint: str
    ray_version: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SpecError(
                f"--name={self.name} cannot name a cluster. Use up to 40 small letters, digits and "
                f"hyphens, a letter "
                "first."
            )
        for argument, value, least in (
            ("workers", self.workers, 1),
            ("cpus", self.cpus, 1),
            ("gpus", self.gpus, 0),
            ("memory", self.memory_gib, 1),
        ):
            if value < least:
                raise SpecError(f"--{argument}={value} is too few. Use at least {least}.")
        if not _TIME.fullmatch(self.time):
            raise SpecError(f"--time={self.time} is no time. Write HH:MM:SS or D-HH:MM:SS.")
        if not self.entrypoint or "\n" in self.entrypoint:
            raise SpecError("There is no command to run. Write it last, in one line: ... -- python train.py")
