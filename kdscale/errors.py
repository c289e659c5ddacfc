"""Errors that a person can cure. One sentence each: the thing, its value, the cure. The command line prints it alone."""


class KdscaleError(Exception):
    """Root of all errors that are the input's fault and not the program's. ``code``: the process's exit code."""

    code = 64


class RecipeError(KdscaleError):
    """A recipe, a field, a role or a method that does not fit."""


class DataError(KdscaleError):
    """Shards, manifest, index or a sample: what is damaged or missing, where, and what to do."""


class NetworkError(KdscaleError):
    """A network that cannot be built, loaded or used as asked."""


class RunError(KdscaleError):
    """An output folder, a save or a set-up of processes that cannot be used as asked."""


class ExportError(KdscaleError):
    """A run that cannot be exported or published as asked."""
