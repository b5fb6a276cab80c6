"""BERT, ViT and the encoder-decoder: padding, heads, learning, wrong settings and inputs."""

from __future__ import annotations

import re

import numpy as np
import pytest

import framework as fw
from framework import optimizers
from framework.explain.attention import attention_maps
from framework.functional import cross_entropy
from models import BERT, BERTConfig, Seq2Seq, Seq2SeqConfig, ViT, ViTConfig
from models.bert import hide_tokens
from models.transformer import CrossAttention

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 9, (3, 8))
SMALL = {"depth": 1, "heads": 2, "width": 16}

pytestmark = pytest.mark.usefixtures("device")


def moved(array):
    return fw.tensor(array, device=fw.default_device())


def learnt(model, loss, steps, lr=0.01):
    """The last of so many losses."""
    optimizer = optimizers.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return value.item()


def bert(head):
    fw.manual_seed(0)
    return BERT(BERTConfig(9, 8, **SMALL, head=head, classes=3, dropout=0.0))


@pytest.mark.parametrize(
    ("head", "shape"), [("masked", (3, 8, 9)), ("classification", (3, 3)), ("embedding", (3, 16))]
)
def test_bert_does_not_see_padding(head, shape):
    model, lengths = bert(head), moved(np.array([8, 5, 1]))
    out = model(moved(IDS), lengths).detach().numpy()
    assert out.shape == shape
    other = IDS.copy()
    other[1, 5:], other[2, 1:] = 1, 2
    again = model(moved(other), lengths).detach().numpy()
    if head == "masked":
        out, again = (np.concatenate([x[0], x[1, :5], x[2, :1]]) for x in (out, again))
    np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-6)
    unpadded = model(moved(IDS[1:2, :5])).detach().numpy()
    np.testing.assert_allclose(unpadded[0], out[8:13] if head == "masked" else out[1], atol=1e-5)


def test_bert_learns_hidden_tokens_and_classes():
    inputs, target = hide_tokens(IDS, 0, 9, seed=3, share=0.5)
    model, inputs, target = bert("masked"), moved(inputs.data), moved(target.data)
    assert learnt(model, lambda: model.loss(inputs, target), 60) < 0.5
    model, classes = bert("classification"), moved(np.arange(3))
    assert learnt(model, lambda: model.loss(moved(IDS), classes), 60) < 0.1


def test_berts_loss_is_that_of_the_logits():
    inputs, target = hide_tokens(IDS, 0, 9, seed=3, share=0.5)
    target.data[0] = -100
    inputs, target, lengths = moved(inputs.data), moved(target.data), moved(np.array([8, 8, 6]))
    found = []
    for fused in (True, False):
        model = bert("masked")
        model.output_bias.data[...] = np.linspace(-1, 1, 9)
        if fused:
            loss = model.loss(inputs, target, lengths)
        else:
            loss = cross_entropy(model(inputs, lengths).reshape(-1, 9), target.reshape(-1))
        loss.backward()
        found.append([loss.item(), *(p.grad.numpy() for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    nothing = model.loss(inputs, moved(np.full((3, 8), -100)))
    nothing.backward()
    assert np.isnan(nothing.item())
    assert all((p.grad.numpy() == 0).all() for p in model.parameters() if p.grad is not None)


def test_hidden_tokens():
    ids = np.full((100, 100), 7)
    inputs, target = (x.numpy() for x in hide_tokens(ids, 1, 50, seed=0))
    chosen = target != -100
    assert (target[chosen] == 7).all() and (inputs[~chosen] == 7).all()
    assert chosen.mean() == pytest.approx(0.15, abs=0.02)
    assert (inputs[chosen] == 1).mean() == pytest.approx(0.8, abs=0.05)
    assert (inputs[chosen] == 7).mean() == pytest.approx(0.1, abs=0.05)


def test_vit_learns_images():
    fw.manual_seed(0)
    model = ViT(ViTConfig(2, 8, 4, 3, patch=2, depth=1, heads=2, embedding=16, dropout=0.0))
    images, classes = (
        moved(RNG.normal(size=(6, 2, 8, 4)).astype(np.float32)),
        moved(np.arange(6) % 3),
    )
    assert learnt(model, lambda: cross_entropy(model(images), classes), 60) < 0.1
    assert all(abs(p.grad.numpy()).max() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match=r"shape \(6, 2, 4, 8\), expected \(B, 2, 8, 4\)"):
        model(images.transpose(2, 3))


def test_vit_for_data():
    for shape, patch in (((1, 8, 8), 2), ((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 7, 7), 7)):
        assert ViTConfig.for_data(shape, 10, "classification").patch == patch
    with pytest.raises(ValueError, match=r"images \(C, H, W\), this data has the shape \(30,\)"):
        ViTConfig.for_data((30,), 2, "classification")
    assert (ViTConfig.tiny().embedding, ViTConfig.small(depth=2).depth) == (192, 2)


def test_the_decoder_learns_to_turn_a_sequence_round():
    fw.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(9, 11, 9, **SMALL))
    begin, end = 9, 10
    lengths = np.array([8, 5, 1])
    target = np.full((3, 9), -100)
    previous = np.full((3, 9), begin)
    for i, n in enumerate(lengths):
        target[i, : n + 1] = [*IDS[i, :n][::-1], end]
        previous[i, 1 : n + 1] = IDS[i, :n][::-1]
    ids, n, previous = moved(IDS), moved(lengths), moved(previous)
    flat = moved(target.reshape(-1))

    def loss():
        return cross_entropy(model(ids, previous, n).reshape(-1, 11), flat)

    assert learnt(model, loss, 120) < 0.05
    assert model.write(ids, begin, end, n) == [
        IDS[i, :k][::-1].tolist() for i, k in enumerate(lengths)
    ]
    assert model.training
    with pytest.raises(ValueError, match=r"previous have shape \(3, 10\), expected .* block=9"):
        model(ids, moved(np.zeros((3, 10), np.int64)))


def test_attention_weights_are_those_of_the_outputs():
    """Of every layer of attention: its weights times its values, through its last product."""
    checked = []

    def check(layer, args, out):
        x, second, *_ = args
        if isinstance(layer, CrossAttention):
            v = second[1]
        else:
            v = layer.split(layer.qkv(x))[2]
        y = layer.attention_weights(*args) @ v  # (B, H, T, D)
        expected = layer.out(y.transpose(1, 2).reshape(*x.shape))
        np.testing.assert_allclose(expected.numpy(), out.numpy(), rtol=1e-4, atol=1e-5)
        checked.append(type(layer).__name__)

    lengths = moved(np.array([8, 5, 1]))
    images = moved(RNG.normal(size=(2, 1, 8, 8)).astype(np.float32))
    fw.manual_seed(0)
    vit, translator = ViT(ViTConfig(depth=1)), Seq2Seq(Seq2SeqConfig(9, 9, 9, **SMALL))
    ids = moved(IDS)
    runs = [(bert("masked"), (ids, lengths)), (vit, (images,)), (translator, (ids, ids, lengths))]
    for model, inputs in runs:
        for layer in model.modules():
            if hasattr(layer, "attention_weights"):
                layer.register_forward_hook(check)
        with fw.no_grad():
            model.eval()(*inputs)
        maps = attention_maps(model, *inputs)
        assert all(abs(m.weights.sum(-1) - 1).max() < 1e-5 for m in maps)
    assert [m.name.partition(".")[0] for m in maps] == ["encoder", "decoder", "decoder"]
    assert maps[2].name.endswith("cross") and (maps[2].weights[1, :, :, 5:] == 0).all()
    assert set(checked) == {"SelfAttention", "CrossAttention"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BERTConfig(heads=5), "heads is 5, which does not divide width=768"),
        (lambda: BERTConfig(head="mean"), "head is 'mean', expected one of masked, classif"),
        (lambda: BERTConfig(activation="swiglu"), "expected one of gelu, gelu_tanh, relu"),
        (lambda: BERTConfig(types=0), "types is 0, expected an integer of at least 1"),
        (lambda: ViTConfig(patch=3), "patch is 3, which does not divide images of 8 x 8 pixels"),
        (lambda: ViTConfig(heads=3), "heads is 3, which does not divide width=64"),
        (lambda: Seq2SeqConfig(source=0), "source is 0"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_many_tokens_for_bert():
    with pytest.raises(ValueError, match=r"shape \(1, 9\), expected \(B, T\) with at most block=8"):
        bert("masked")(moved(np.zeros((1, 9), np.int64)))


@pytest.mark.parametrize("shape", [(2, 7), (8, 2), (16,), (1, 8), (2, 9)])
def test_targets_of_another_shape_for_bert(shape):
    target = np.full(shape, -100)
    target.flat[3] = 5
    message = rf"target has shape {re.escape(str(shape))}, ids have \(2, 8\)"
    with pytest.raises(ValueError, match=message):
        bert("masked").loss(moved(np.zeros((2, 8), np.int64)), moved(target))
