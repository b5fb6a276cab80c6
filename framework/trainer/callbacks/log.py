"""The records as files: a line an epoch, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.interop.atomic import FileError, write_text
from framework.trainer.callbacks.callback import Callback
from framework.trainer.folders import make_folder

if TYPE_CHECKING:
    from framework.trainer.trainer import Trainer

log = logging.getLogger("framework")


class _Log(Callback, ABC):
    """What both do; `_text` is what a subclass writes."""

    writes = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.written = 0  # records
        self.told = False

    def on_fit_start(self, trainer: Trainer) -> None:
        make_folder(self.path.parent)
        self.told = False
        self._begin(trainer.history)

    def on_epoch_complete(self, trainer: Trainer) -> None:
        records = trainer.history
        try:
            if self.written == len(records) - 1:
                self._append(records[-1])
                self.written += 1
            else:
                self._begin(records)
        except (FileError, OSError) as error:
            self.written = -1  # half a line, perhaps: all of it anew
            if not self.told:
                self.told = True
                reason = error if isinstance(error, FileError) else error.strerror or error
                log.warning("cannot write %s: %s; training goes on", self.path, reason)

    def _begin(self, records: list[dict[str, Any]]) -> None:
        write_text(self.path, self._text(records, True))
        self.written = len(records)

    def _append(self, record: dict[str, Any]) -> None:
        with open(self.path, "r+", encoding="utf-8", newline="") as file:  # as long as it is there
            file.seek(0, os.SEEK_END)
            file.write(self._text([record], False))

    @abstractmethod
    def _text(self, records: list[dict[str, Any]], begins: bool) -> str:
        """Lines of the file, from its beginning or later ones."""


class JSONLLog(_Log):
    """One JSON object an epoch. NaN and infinities, which JSON lacks, become null.

    The file is begun anew with each run; a resumed run first writes the epochs that are done. Where
    it cannot be written later on (disk full, folder gone) that is logged once, training goes on,
    and what is missing is written as soon as that is possible.
    """

    def _text(self, records: list[dict[str, Any]], begins: bool) -> str:
        return "".join(json.dumps(plain(record), allow_nan=False) + "\n" for record in records)


class CSVLog(_Log):
    """One row an epoch, for spreadsheets; the columns are those of the first record. Otherwise as
    JSONLLog.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.columns: list[str] = []

    def _text(self, records: list[dict[str, Any]], begins: bool) -> str:
        text = io.StringIO()
        rows = csv.writer(text)
        if begins:
            self.columns = []
        for record in records:
            if not self.columns:
                self.columns = list(record)
                rows.writerow(self.columns)
            rows.writerow(["" if (v := record.get(c)) is None else v for c in self.columns])
        return text.getvalue()


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
