"""Tests of the three packages, laid out as they are; the whole suite runs with ``make test``."""
