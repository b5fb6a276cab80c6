"""Optimizers, learning-rate schedules, gradient clipping and averaged weights."""

from framework.optimizers import schedules
from framework.optimizers.adagrad import Adagrad
from framework.optimizers.adam import Adam, AdamW
from framework.optimizers.clipping import clip_factor, clip_grad_norm_, clip_grad_value_, grad_norm
from framework.optimizers.ema import EMA
from framework.optimizers.loss_scaling import LossScaler
from framework.optimizers.optimizer import Optimizer
from framework.optimizers.rmsprop import RMSprop
from framework.optimizers.schedules import ReduceOnPlateau, Schedule
from framework.optimizers.sgd import SGD

__all__ = [
    "EMA",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "LossScaler",
    "Optimizer",
    "RMSprop",
    "ReduceOnPlateau",
    "Schedule",
    "clip_factor",
    "clip_grad_norm_",
    "clip_grad_value_",
    "grad_norm",
    "schedules",
]
