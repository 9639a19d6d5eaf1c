"""Tests of `cluster`: pure decisions, and real Ray on this machine."""
