"""Tests of `modules`: what a user writes, and the data it eats; no processes but those of DataLoaders."""
