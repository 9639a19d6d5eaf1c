"""Small ready modules and data, which the command line trains without code and examples start from.

``orchestrator fit --model=MLPClassifier --model.in_features=2 --model.classes=3 --data=Spirals`` is a whole
training. They are ordinary LightningModules and LightningDataModules: copy one to begin your own.
"""

from __future__ import annotations

from modules.models.gpt import ByteGPT
from modules.models.mlp import MLPClassifier, MLPRegressor
from modules.models.spirals import Spirals
from modules.models.table import Table
from modules.models.text import TextBytes

__all__ = ["ByteGPT", "MLPClassifier", "MLPRegressor", "Spirals", "Table", "TextBytes"]
