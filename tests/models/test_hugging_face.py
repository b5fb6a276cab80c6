"""GPT-2, Llama and BERT of the `transformers` library: its logits, and files that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import framework as fw
from framework.interop import safetensors
from framework.interop.atomic import FileError
from models import BERT, GPT, BERTConfig, GPTConfig

IDS = np.random.default_rng(0).integers(0, 50, (2, 11))
SIZES = {"vocab_size": 50, "max_position_embeddings": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}


@pytest.fixture
def theirs():
    torch = pytest.importorskip("torch", reason="torch of the bench extra is missing")
    transformers = pytest.importorskip(
        "transformers", reason="transformers of the bench extra is missing"
    )
    torch.manual_seed(0)
    return transformers


def drawn(model):
    """In evaluation mode, with weights larger than it starts with: errors would show."""
    import torch

    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return model.eval()


def output_of(model, ids, **options):
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(ids), **options)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


def ours(model, *arrays):
    with fw.no_grad():
        return model(*map(fw.tensor, arrays)).numpy()


def gpt2(transformers):
    sizes = {"vocab_size": 50, "n_positions": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
    return drawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))


def llama(transformers, **options):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, rope_theta=500.0, **options)
    return drawn(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize("kind", [gpt2, llama])
def test_gpt_has_their_logits_and_they_have_ours(kind, theirs, tmp_path):
    reference = kind(theirs)
    expected = output_of(reference, IDS)
    reference.save_pretrained(tmp_path / "theirs")
    model = GPT.from_pretrained(tmp_path / "theirs")
    assert not model.training
    np.testing.assert_allclose(ours(model, IDS), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    back = type(reference).from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(output_of(back, IDS), expected, rtol=1e-4, atol=1e-4)
    assert GPT.from_pretrained(tmp_path / "ours").config == model.config


@pytest.mark.parametrize("head", ["masked", "classification", "embedding"])
def test_bert_has_their_outputs_and_they_have_ours(head, theirs, tmp_path):
    name = {"masked": "BertForMaskedLM", "embedding": "BertModel"}.get(
        head, "BertForSequenceClassification"
    )
    kind = getattr(theirs, name)
    reference = drawn(kind(theirs.BertConfig(**SIZES, num_labels=3)))
    lengths, kinds = np.array([11, 6]), np.repeat([[0, 1]], [5, 6], axis=1).repeat(2, axis=0)
    import torch

    seen = torch.from_numpy(np.arange(11) < lengths[:, None]).long()
    options = {"attention_mask": seen, "token_type_ids": torch.from_numpy(kinds)}
    expected = output_of(reference, IDS, **options)
    reference.save_pretrained(tmp_path / "theirs")
    model = BERT.from_pretrained(tmp_path / "theirs")
    assert model.config.head == head
    got = ours(model, IDS, lengths, kinds)
    if head == "embedding":
        expected = np.stack([x[:n].mean(0) for x, n in zip(expected, lengths, strict=True)])
    if head == "masked":  # padded places say nothing
        got, expected = (np.concatenate([x[0], x[1, :6]]) for x in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    assert BERT.from_pretrained(tmp_path / "ours").config == model.config
    back = drawn(kind(reference.config)).from_pretrained(tmp_path / "ours").eval()
    if head != "embedding":
        again = output_of(back, IDS, **options)
        first = output_of(reference, IDS, **options)
        np.testing.assert_allclose(again[0], first[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_the_head_of_a_bert_has_its_activation(activation, theirs, tmp_path):
    reference = drawn(theirs.BertForMaskedLM(theirs.BertConfig(**SIZES, hidden_act=activation)))
    reference.save_pretrained(tmp_path)
    model = BERT.from_pretrained(tmp_path)
    # the two formulas of gelu differ by 5e-4 at most
    np.testing.assert_allclose(ours(model, IDS), output_of(reference, IDS), rtol=1e-5, atol=1e-5)


def test_other_heads_of_a_bert_are_left_out(tmp_path):
    masked = BERT(BERTConfig(50, 16, depth=1, heads=2, width=8, head="masked"))
    masked.save_pretrained(tmp_path)
    tensors = safetensors.load(tmp_path / "model.safetensors")
    for now, then in (
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
    ):
        tensors = {
            name.replace(now, then): x for name, x in tensors.items()
        }  # as in the first files
    safetensors.save(tensors, tmp_path / "model.safetensors")
    model = BERT.from_pretrained(tmp_path, head="embedding")
    np.testing.assert_array_equal(model.tokens.weight.data, masked.tokens.weight.data)


# Without the library ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    fw.manual_seed(0)
    small = GPTConfig(50, 16, depth=1, heads=2, width=8, bias=True)
    GPT(small).save_pretrained(tmp_path)
    return tmp_path


def test_an_index_of_several_files(folder):
    whole = GPT.from_pretrained(folder)
    tensors = safetensors.load(folder / "model.safetensors")
    names = list(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        # as on the hub: without the prefix
        safetensors.save({n.removeprefix("transformer."): tensors[n] for n in part}, folder / file)
    places = {n.removeprefix("transformer."): f for f, part in parts.items() for n in part}
    index = {"weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(ours(GPT.from_pretrained(folder), IDS), ours(whole, IDS))
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileError, match=r"b.safetensors does not exist"):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "..", "", "a\0.safetensors", "\ud800", "a/b", 3]
)
def test_an_index_cannot_name_files_elsewhere(folder, name):
    inner = folder / "inner"
    inner.mkdir()
    (folder / "config.json").rename(inner / "config.json")
    (inner / "spare.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    places = dict.fromkeys(safetensors.load(folder / "model.safetensors"), name)
    (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(
        FileError, match=r"index.json is damaged: .* is no name of a file beside it"
    ):
        GPT.from_pretrained(inner)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        *(("gpt2", name) for name in ("vocab_size", "n_positions", "n_layer", "n_inner")),
        *(("llama", name) for name in ("max_position_embeddings", "num_hidden_layers")),
        *(("bert", name) for name in ("vocab_size", "intermediate_size")),
    ],
)
def test_a_config_takes_no_memory_beyond_the_weights(kind, entry, tmp_path):
    sizes = {"depth": 1, "heads": 2, "width": 8}
    if kind == "bert":
        model = BERT(BERTConfig(50, 16, **sizes))
    else:
        config = GPTConfig(50, 16, bias=True, **sizes)
        if kind == "llama":
            config = GPTConfig.llama(vocabulary=50, block=16, **sizes)
        model = GPT(config)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: 10**12}))
    with pytest.raises(FileError, match=r"config.json describes no model: a weight of shape .* is"):
        type(model).from_pretrained(tmp_path)


def damage(folder, name, change):
    tensors = safetensors.load(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    safetensors.save(
        {n: x for n, x in tensors.items() if x is not None}, folder / "model.safetensors"
    )


NORM, QKV = "transformer.h.0.ln_2.bias", "transformer.h.0.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (QKV, lambda x: x.T.copy(), rf"{QKV} has shape \(24, 8\), the model needs \(8, 24\)"),
        (NORM, lambda x: None, rf"no tensor {NORM}, of shape \(8,\)"),
        ("extra", lambda x: x, ""),
    ],
)
def test_tensors_that_do_not_fit_leave_the_model_as_it_was(folder, name, change, message):
    model = GPT(GPTConfig(50, 16, depth=1, heads=2, width=8, bias=True))
    before = {n: x.numpy().copy() for n, x in model.state_dict().items()}
    if name == "extra":
        tensors = safetensors.load(folder / "model.safetensors")
        safetensors.save(tensors | {name: np.zeros((2, 3))}, folder / "model.safetensors")
        message = r"has transformer.*extra|has extra of shape \(2, 3\), for which the model has no"
    else:
        damage(folder, name, change)
    with pytest.raises(FileError, match=message):
        model.load_pretrained(folder)
    with pytest.raises(FileError, match=message):
        GPT.from_pretrained(folder)
    for n, x in model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[n])


def test_files_that_are_damaged_or_of_another_architecture(folder):
    with pytest.raises(FileError, match="another architecture: model_type is 'gpt2', expected 'b"):
        BERT.from_pretrained(folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(FileError, match="is no safetensors file, or a damaged one"):
        GPT.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileError, match="model.safetensors does not exist"):
        GPT.from_pretrained(folder)
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    for change, message in (
        ({"n_head": 3}, "heads is 3, which does not divide width=8"),
        ({"n_embd": "16"}, "width is '16', expected an integer of at least 1"),
        ({"n_embd": None}, "width is None, expected an integer of at least 1"),
        ({"activation_function": "relu"}, "activation_function is 'relu', only 'gelu_new'"),
        ({"model_type": "mamba"}, "model_type is 'mamba', expected 'gpt2' or 'llama'"),
    ):
        config.write_text(json.dumps(settings | change))
        with pytest.raises(FileError, match=message):
            GPT.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(FileError, match=r"config.json is damaged"):
        GPT.from_pretrained(folder)


def test_dropouts_that_differ_are_said(folder, caplog):
    GPT.from_pretrained(folder)
    assert not caplog.records
    config = folder / "config.json"
    other = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | other))
    assert GPT.from_pretrained(folder).config.dropout == 0.3
    message = "config.json has attn_pdrop=0.0: resid_pdrop=0.3 is used for these too"
    assert caplog.messages == [message]


def test_a_width_that_is_none_is_named_of_a_llama_too(tmp_path):
    config = GPTConfig.llama(vocabulary=50, block=16, depth=1, heads=2, width=16)
    GPT(config).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"hidden_size": None}, "width is None, expected an integer"),
        ({"num_attention_heads": 0}, "heads is 0, expected an integer"),
        ({"head_dim": 4}, "head_dim is 4, only 8 is computed here"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(FileError, match=message):
            GPT.from_pretrained(tmp_path)


def test_a_layout_that_is_neither_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="neither GPT-2's layout"):
        GPT(GPTConfig(50, 16, depth=1, heads=2, width=8, positions="rotary")).save_pretrained(
            tmp_path
        )
