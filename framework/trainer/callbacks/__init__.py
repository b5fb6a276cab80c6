"""Callbacks, one small file each."""

from framework.trainer.callbacks.callback import Callback
from framework.trainer.callbacks.curve_plot import CurvePlot, draw_curves
from framework.trainer.callbacks.early_stopping import EarlyStopping
from framework.trainer.callbacks.health import Health
from framework.trainer.callbacks.interrupts import Interrupts, Stopped
from framework.trainer.callbacks.log import CSVLog, JSONLLog
from framework.trainer.callbacks.lr_monitor import LRMonitor
from framework.trainer.callbacks.model_checkpoint import ModelCheckpoint
from framework.trainer.callbacks.profiler import Profiler
from framework.trainer.callbacks.progress import Progress
from framework.trainer.callbacks.sample_text import SampleText
from framework.trainer.callbacks.terminate_on_nan import NonFiniteError, TerminateOnNaN

__all__ = [
    "CSVLog",
    "Callback",
    "CurvePlot",
    "EarlyStopping",
    "Health",
    "Interrupts",
    "JSONLLog",
    "LRMonitor",
    "ModelCheckpoint",
    "NonFiniteError",
    "Profiler",
    "Progress",
    "SampleText",
    "Stopped",
    "TerminateOnNaN",
    "draw_curves",
]
