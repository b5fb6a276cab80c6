"""The zoo: one readable file per family, found by name.

from models import MLP, MLPConfig, build
model = build("mlp", inputs=784, hidden=(512, 256))
"""

from models.gpt import GPT, GPTConfig
from models.mlp import MLP, MLPConfig
from models.nplm import NPLM, NPLMConfig
from models.runs import Run, build_model, open_run
from models.zoo import ZOO, Entry, build, configure, entry, hint

__all__ = [
    "GPT",
    "MLP",
    "NPLM",
    "ZOO",
    "Entry",
    "GPTConfig",
    "MLPConfig",
    "NPLMConfig",
    "Run",
    "build",
    "build_model",
    "configure",
    "entry",
    "hint",
    "open_run",
]
