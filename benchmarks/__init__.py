"""Measurements against named rivals, as ratios in one interleaved run."""
