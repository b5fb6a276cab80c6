"""The errors of `framework.data`. A command line prints them as one line, without a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """A file or data set that cannot be used: missing, corrupt, wrong hash, unknown name."""


class LoaderError(RuntimeError):
    """Making a batch failed; says which batch, samples and step. ``__cause__`` is the error,
    `sample` the index of the sample that fails alone, where one does.
    """

    sample: int | None = None
