"""The zoo: one readable file per family, found by name.

from models import MLP, MLPConfig, build
model = build("mlp", inputs=784, hidden=(512, 256))
"""

from models.bert import BERT, BERTConfig
from models.convnext import ConvNeXt, ConvNeXtConfig
from models.gpt import GPT, GPTConfig
from models.lenet import LeNet, LeNetConfig
from models.mlp import MLP, MLPConfig
from models.mobilenet import MobileNetV2, MobileNetV2Config
from models.nplm import NPLM, NPLMConfig
from models.resnet import ResNet, ResNet18Config, ResNet34Config, ResNet50Config
from models.rnn import CharRNN, CharRNNConfig, RNNClassifier, RNNClassifierConfig
from models.rnn_seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from models.runs import Run, build_model, open_run
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.vgg import VGG, VGGConfig
from models.vit import ViT, ViTConfig
from models.zoo import ZOO, Entry, build, configure, entry, hint

__all__ = [
    "BERT",
    "BERTConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "ViT",
    "ViTConfig",
    "ConvNeXt",
    "ConvNeXtConfig",
    "LeNet",
    "LeNetConfig",
    "MobileNetV2",
    "MobileNetV2Config",
    "ResNet",
    "ResNet18Config",
    "ResNet34Config",
    "ResNet50Config",
    "VGG",
    "VGGConfig",
    "GPT",
    "MLP",
    "NPLM",
    "ZOO",
    "CharRNN",
    "CharRNNConfig",
    "Entry",
    "GPTConfig",
    "MLPConfig",
    "NPLMConfig",
    "RNNClassifier",
    "RNNClassifierConfig",
    "Run",
    "RNNSeq2Seq",
    "RNNSeq2SeqConfig",
    "build",
    "build_model",
    "configure",
    "entry",
    "hint",
    "open_run",
]
