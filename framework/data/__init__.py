"""Data: data sets, batches, transforms, and the catalog of known data sets."""

from framework.data.augmentation import (
    CutOut,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomVerticalFlip,
    rotate,
    warp,
)
from framework.data.catalog import CATALOG, Splits, load, names
from framework.data.corpora import CORPORA, Corpus, TokenSplits, load_text
from framework.data.dataset import (
    ArrayDataset,
    Dataset,
    ImageDataset,
    Subset,
    collate,
    random_split,
)
from framework.data.draws import augmentation_draws
from framework.data.errors import DataError, LoaderError
from framework.data.files import RemoteFile, cache_folder, data_folder
from framework.data.idx import read_idx
from framework.data.loader import DataLoader
from framework.data.mixing import MixUp
from framework.data.rand_augment import RandAugment
from framework.data.samplers import BucketSampler, RandomSampler, Sampler, StreamSampler
from framework.data.subwords import BPETokenizer, WordPieceTokenizer
from framework.data.text import Sequences, Windows
from framework.data.tokenizers import (
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    tokenizer_from_json,
)
from framework.data.transforms import Compose, MinMax, OneHot, Standardise, Transform, from_state

__all__ = [
    "CATALOG",
    "CORPORA",
    "ArrayDataset",
    "BPETokenizer",
    "BucketSampler",
    "CharTokenizer",
    "Compose",
    "Corpus",
    "CutOut",
    "DataError",
    "DataLoader",
    "Dataset",
    "ImageDataset",
    "LoaderError",
    "MinMax",
    "MixUp",
    "OneHot",
    "RandAugment",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomSampler",
    "RandomVerticalFlip",
    "RemoteFile",
    "Sampler",
    "Sequences",
    "Splits",
    "Standardise",
    "StreamSampler",
    "Subset",
    "TokenSplits",
    "Tokenizer",
    "Transform",
    "Windows",
    "WordPieceTokenizer",
    "WordTokenizer",
    "augmentation_draws",
    "cache_folder",
    "collate",
    "data_folder",
    "from_state",
    "load",
    "load_text",
    "names",
    "random_split",
    "read_idx",
    "rotate",
    "tokenizer_from_json",
    "warp",
]
