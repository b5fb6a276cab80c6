"""The zoo: one readable file per family, found by name.

from models import MLP, MLPConfig, build
model = build("mlp", inputs=784, hidden=(512, 256))
"""

from models.bert import BERT, BERTConfig
from models.gpt import GPT, GPTConfig
from models.mlp import MLP, MLPConfig
from models.nplm import NPLM, NPLMConfig
from models.runs import Run, build_model, open_run
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.vit import ViT, ViTConfig
from models.zoo import ZOO, Entry, build, configure, entry, hint

__all__ = [
    "BERT",
    "GPT",
    "MLP",
    "NPLM",
    "ZOO",
    "BERTConfig",
    "Entry",
    "GPTConfig",
    "MLPConfig",
    "NPLMConfig",
    "Run",
    "Seq2Seq",
    "Seq2SeqConfig",
    "ViT",
    "ViTConfig",
    "build",
    "build_model",
    "configure",
    "entry",
    "hint",
    "open_run",
]
