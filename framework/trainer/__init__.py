"""The trainer: loop, metrics, callbacks, checkpoints."""

from framework.trainer import checkpoint
from framework.trainer.batch_size import find_batch_size
from framework.trainer.callbacks import (
    Callback,
    CSVLog,
    CurvePlot,
    EarlyStopping,
    Health,
    Interrupts,
    JSONLLog,
    LRMonitor,
    ModelCheckpoint,
    NonFiniteError,
    Profiler,
    Progress,
    SampleText,
    Stopped,
    TerminateOnNaN,
)
from framework.trainer.checkpoint import CheckpointError
from framework.trainer.find_lr import LRCurve, find_lr
from framework.trainer.metrics import (
    F1,
    R2,
    Accuracy,
    ConfusionMatrix,
    Loss,
    Mean,
    Metric,
    Precision,
    Recall,
    TopK,
)
from framework.trainer.model_loss import ModelLoss
from framework.trainer.trainer import Trainer

__all__ = [
    "F1",
    "R2",
    "Accuracy",
    "CSVLog",
    "Callback",
    "CheckpointError",
    "ConfusionMatrix",
    "CurvePlot",
    "EarlyStopping",
    "Health",
    "Interrupts",
    "JSONLLog",
    "LRCurve",
    "LRMonitor",
    "Loss",
    "Mean",
    "Metric",
    "ModelCheckpoint",
    "ModelLoss",
    "NonFiniteError",
    "Precision",
    "Profiler",
    "Progress",
    "Recall",
    "SampleText",
    "Stopped",
    "TerminateOnNaN",
    "TopK",
    "Trainer",
    "checkpoint",
    "find_batch_size",
    "find_lr",
]
