"""Runs -> tables, sentences and pictures."""
