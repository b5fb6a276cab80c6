"""The records as files: a line an epoch, JSON or CSV."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.interop.atomic import FileError
from framework.trainer.callbacks.callback import Callback
from framework.trainer.folders import make_folder

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer


class JSONLLog(Callback):
    """One JSON object an epoch. NaN and infinities, which JSON lacks, become null.

    The file is begun anew with each run; a resumed run first writes the epochs that are done.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_start(self, trainer: Trainer) -> None:
        make_folder(self.path.parent)
        self._write("w", trainer.history)

    def on_epoch_complete(self, trainer: Trainer) -> None:
        self._write("a", trainer.history[-1:])

    def _write(self, mode: str, records: list[dict[str, Any]]) -> None:
        lines = [json.dumps(plain(record), allow_nan=False) + "\n" for record in records]
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error


class CSVLog(Callback):
    """One row an epoch, for spreadsheets; the columns are those of the first record.

    The file is begun anew with each run; a resumed run first writes the epochs that are done.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.columns: list[str] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        make_folder(self.path.parent)
        self.columns = []
        self._write("w", trainer.history)

    def on_epoch_complete(self, trainer: Trainer) -> None:
        self._write("a", trainer.history[-1:])

    def _write(self, mode: str, records: list[dict[str, Any]]) -> None:
        try:
            with open(self.path, mode, encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                for record in records:
                    if not self.columns:
                        self.columns = list(record)
                        rows.writerow(self.columns)
                    rows.writerow(["" if (v := record.get(c)) is None else v for c in self.columns])
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
