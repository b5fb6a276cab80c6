"""GPT: what it sees, generation with a cache as without, both layouts, wrong settings and ids."""

from __future__ import annotations

import numpy as np
import pytest

import framework as fw
from framework import optimizers
from framework.explain.attention import attention_maps
from models import GPT, GPTConfig, build

IDS = np.random.default_rng(0).integers(0, 9, (2, 12))
SMALL = {"vocabulary": 9, "block": 12, "depth": 2, "heads": 4, "width": 16}

pytestmark = pytest.mark.usefixtures("device")


def moved(array):
    return fw.tensor(array, device=fw.default_device())


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """With weights large enough that tokens differ."""
    fw.manual_seed(2)
    if request.param == "gpt2":
        config = GPTConfig(**SMALL, bias=True, tied=False)  # a tied head repeats the last
    else:
        config = GPTConfig.llama(**SMALL, groups=2)
    model = GPT(config)
    for p in model.parameters():
        if p.ndim > 1:
            p.data *= 8
    return model


def test_it_sees_the_tokens_before_only(model):
    logits = model(moved(IDS)).detach().numpy()
    assert logits.shape == (2, 12, 9)
    changed = IDS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 9
    apart = abs(model(moved(changed)).detach().numpy() - logits).max(axis=(0, 2))
    assert (apart[:5] < 1e-6).all() and (apart[5:] > 1e-4).all()


@pytest.mark.parametrize("cuts", [[4], [1, 2, 3], [11]])
def test_steps_equal_the_whole(model, cuts):
    whole = model(moved(IDS)).detach().numpy()
    state, parts = model.start(2), []
    with fw.no_grad():
        for ids in np.split(IDS, cuts, axis=1):
            logits, state = model.step(moved(ids), state)
            parts.append(logits.numpy())
    ends = [*np.array(cuts) - 1, 11]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole[:, ends], rtol=1e-4, atol=1e-5)


def test_generation_with_the_cache_equals_generation_without(model):
    """Greedy, past the block: then both read its last half again."""
    cached = list(fw.generate(model, [1, 2, 3], 30, temperature=0))
    model.eval()
    text, seen = [1, 2, 3], [1, 2, 3]
    for _ in range(30):
        if len(seen) > model.block:
            seen = text[-(model.block // 2) :]
        with fw.no_grad():
            token = int(model(moved(np.array([seen])))[0, -1].numpy().argmax())
        text.append(token)
        seen = [*seen, token]
    assert text[3:] == cached
    assert len(set(cached)) > 2


def test_the_loss_is_that_of_the_logits(model):
    from framework.functional import cross_entropy

    ids, target = moved(IDS[:, :-1]), moved(IDS[:, 1:])
    expected = cross_entropy(model(ids).reshape(-1, 9), target.reshape(-1)).item()
    assert model.loss(ids, target).item() == pytest.approx(expected, rel=1e-5)


def test_blocks_computed_again_have_the_same_gradients():
    def gradients(checkpoint):
        fw.manual_seed(0)
        model = build("gpt", **SMALL, dropout=0.3, checkpoint=checkpoint)
        loss = model.loss(moved(IDS[:, :-1]), moved(IDS[:, 1:]))
        loss.backward()
        return [loss.detach().numpy(), *(p.grad.numpy() for p in model.parameters())]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_it_can_learn_a_sequence():
    fw.manual_seed(0)
    model = build("gpt", **SMALL, dropout=0.05)
    optimizer = optimizers.AdamW(model.parameters(), lr=0.01)
    ids, target = moved(IDS[:, :-1]), moved(IDS[:, 1:])
    for _ in range(80):
        loss = model.loss(ids, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    assert all(abs(p.grad.numpy()).max() > 0 for p in model.parameters())


def test_attention_maps(model):
    maps = attention_maps(model, moved(IDS))
    assert [m.name for m in maps] == ["blocks.each.0.attention", "blocks.each.1.attention"]
    for m in maps:
        assert m.weights.shape == (2, 4, 12, 12)
        np.testing.assert_allclose(m.weights.sum(-1), 1, rtol=1e-5)
        assert (np.triu(m.weights, 1) == 0).all()
    assert not model.blocks.each[0].attention.has_hooks


def test_sizes_of_gpt2():
    config = GPTConfig.gpt2("XL", depth=1, vocabulary=10)
    assert (config.width, config.heads, config.block, config.bias) == (1600, 25, 1024, True)
    with pytest.raises(ValueError, match="size is '1B', expected one of 124M, 355M, 774M, XL"):
        GPTConfig.gpt2("1B")
    per_block = 12 * 768**2 + 13 * 768  # two norms, and four layers with their biases
    model = GPT(GPTConfig.gpt2(depth=1, vocabulary=10))
    assert sum(p.size for p in model.parameters()) == per_block + (10 + 1024 + 2) * 768


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3, which does not divide width=128"),
        ({"groups": 3}, "groups is 3, which does not divide heads=4"),
        ({"depth": 0}, "depth is 0, expected an integer of at least 1"),
        ({"block": 1.5}, "block is 1.5"),
        ({"norm": "batch"}, "norm is 'batch', expected one of layer, rms"),
        ({"activation": "silu"}, "activation is 'silu', expected one of gelu, gelu_tanh"),
        ({"positions": "none"}, "positions is 'none', expected one of learned, rotary"),
        ({"positions": "rotary", "width": 12}, "heads of an even width, width=12 makes 3"),
        ({"dropout": 1}, "dropout is 1, expected a probability"),
        ({"tied": 1}, "tied is 1, expected True or False"),
        ({"bias": None}, "bias is None, expected True or False"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


def test_ids_that_cannot_be(model):
    with pytest.raises(
        ValueError, match=r"shape \(2, 13\), expected \(B, T\) with at most block=12"
    ):
        model(moved(np.zeros((2, 13), np.int64)))
    state = model.start(2)
    _, state = model.step(moved(IDS[:, :8]), state)
    with pytest.raises(ValueError, match=r"shape \(2, 5\) after 8"):
        model.step(moved(IDS[:, :5]), state)
    if str(fw.default_device()) == "cpu":
        with pytest.raises(IndexError, match="9"):
            model(moved(np.array([[0, 9]])))
