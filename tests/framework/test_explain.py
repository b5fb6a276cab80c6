"""Pictures of what a model does with an image, and the images that they take."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import framework as fw
from framework.autograd import Tensor
from framework.data import CharTokenizer, Standardise
from framework.explain import PICTURES, Subject, TextSubject, explain, read_image
from framework.explain.attention import attention_maps, between_tokens, over_image
from framework.explain.feature_maps import maps_of
from framework.explain.saliency import gradient
from framework.interop.atomic import FileError
from models import build

matplotlib = pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
RNG = np.random.default_rng(0)
CLASSES = tuple("abcde")


def subject(name, shape=(1, 12, 12), truth=None, **settings):
    fw.manual_seed(0)
    if name == "mlp":
        model = build("mlp", inputs=int(np.prod(shape)), outputs=5, hidden=(8,))
    elif name == "vit":
        sizes = dict(zip(("channels", "height", "width"), shape, strict=True))
        model = build(name, **sizes, outputs=5, **settings)
    else:
        model = build(name, shape=shape, classes=5, **settings)
    images = RNG.random((20, *shape)).astype(np.float32)
    return Subject(model, images[0], Standardise(per="all").fit(images), CLASSES, truth=truth)


def test_probabilities_and_their_order():
    s = subject("lenet")
    assert s.probabilities.shape == (5,)
    assert s.probabilities.sum() == pytest.approx(1)
    assert s.ranked()[0] == s.probabilities.argmax()
    assert not s.model.training


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_gradient_is_that_of_the_score(name):
    s = subject(name)
    found, x = gradient(s, 3), s.batch().numpy()
    direction = np.sign(found)[None]  # all pixels together: a difference that rounding leaves be
    score = [float(s.model(Tensor(x + step * direction))[0, 3]) for step in (1e-3, -1e-3)]
    assert (score[0] - score[1]) / 2e-3 == pytest.approx(np.abs(found).sum(), rel=2e-2)
    assert all(p.grad is None or not p.grad.numpy().any() for p in s.model.parameters())


def test_maps_are_those_of_the_last_layer_of_each_size():
    names = [(m.name, m.values.shape) for m in maps_of(subject("lenet"))]
    assert names == [
        ("conv1", (6, 12, 12)),
        ("conv1, pool, activation", (6, 6, 6)),
        ("conv2", (16, 2, 2)),
    ]
    s = subject("resnet18", (3, 16, 16), width=4)
    assert [m.name for m in maps_of(s)] == ["layer1", "layer2", "layer3", "layer4"]
    s = subject("convnext", (3, 16, 16), blocks=(1, 1), channels=(4, 6))
    assert [m.values.shape for m in maps_of(s)] == [(4, 8, 8), (6, 4, 4)]


@pytest.mark.parametrize(
    ("s", "missing"),
    [
        (subject("lenet", truth=2), {"attention"}),
        (subject("resnet18", (3, 9, 12), width=4), {"attention"}),  # not square, in colours
        (subject("mlp"), {"attention", "filters", "feature-maps"}),
        (subject("vit", (3, 8, 12), patch=4, depth=9, embedding=16), set()),
    ],
    ids=["lenet", "resnet18", "mlp", "vit"],
)
def test_pictures_are_written(s, missing, tmp_path):
    from matplotlib.image import imread

    files = explain(s, tmp_path / "explain" / "it")
    assert {file.stem for file in files} == set(PICTURES) - missing
    for file in files:
        pixels = imread(file)
        assert min(pixels.shape[:2]) > 150
        assert pixels[..., :3].std() > 0.02
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)  # no scratch is left


def test_rollout_is_the_product_of_half_kept_weights():
    s = subject("vit", (1, 4, 4), patch=2, depth=2, embedding=8, heads=2)
    with fw.no_grad():
        for p in s.model.parameters():
            p *= 4.0  # so that patches differ
    a, b = (m.weights[0].mean(0) for m in attention_maps(s.model, s.batch()))
    through = ((b + np.eye(5)) / 2 @ (a + np.eye(5)) / 2)[0, 1:].reshape(2, 2)
    figure = over_image(s)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["image", "layer 1", "layer 2", "rollout"]
    drawn = [axes.get_images()[0].get_array() for axes in figure.axes[1:]]
    np.testing.assert_allclose(drawn[0], a[0, 1:].reshape(2, 2), rtol=1e-5)
    np.testing.assert_allclose(drawn[2], through, rtol=1e-5)
    extents = [axes.get_images()[0].get_extent() for axes in figure.axes]
    assert [tuple(extent) for extent in extents] == [(-0.5, 3.5, 3.5, -0.5)] * 4


def test_more_attention_is_brighter_whatever_the_image_is():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    s = subject("vit", (1, 16, 16), patch=4, depth=2, embedding=8, heads=2)
    s.image[:] = np.arange(16) % 8 < 4  # stripes as wide as a patch
    with fw.no_grad():
        for p in s.model.parameters():
            p *= 4.0
    figure = over_image(s)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] @ [0.3, 0.6, 0.1]
    for axes in figure.axes[1:]:
        box = axes.get_window_extent()
        rows = len(pixels) - (box.y1 - box.height * (np.arange(4) + 0.5) / 4)
        columns = box.x0 + box.width * (np.arange(4) + 0.5) / 4
        seen = pixels[np.ix_(rows.astype(int), columns.astype(int))]
        order = axes.get_images()[-1].get_array().ravel().argsort()
        assert (np.diff(seen.ravel()[order]) >= 0).all()
        assert np.ptp(seen) > 20


@pytest.mark.parametrize("heads", [2, 12])
def test_attention_between_tokens(heads, tmp_path):
    text = "to be, or not to be:\nthat is \u4e2d $question$"
    fw.manual_seed(0)
    model = build("gpt", vocabulary=25, block=40, depth=2, heads=heads, width=24)
    tokenizer = CharTokenizer.train(text)
    s = TextSubject(model, tokenizer.encode(text), tokenizer)
    (file,) = explain(s, tmp_path / "it")
    assert file.name == "attention.png" and len(s.tokens) == 32
    figure = between_tokens(s)
    assert len(figure.axes) == 2 * heads
    count = {2: 32, 12: 23}[heads]
    assert f"the first {count} of 41" in figure.texts[1].get_text()
    labels = [x.get_text() for x in figure.axes[0].get_yticklabels()]
    assert labels[:6] == ["t", "o", "\u2423", "b", "e", ","] and len(labels) == count
    drawn = figure.axes[1].get_images()[0].get_array()
    assert drawn.mask[0].tolist() == [False] + [True] * (count - 1)
    np.testing.assert_allclose(drawn.sum(1), 1, rtol=1e-5)


def test_a_text_without_attention(tmp_path):
    tokenizer = CharTokenizer.train("abc")
    model = build("charlstm", vocabulary=3, hidden=4)
    assert explain(TextSubject(model, tokenizer.encode("abc"), tokenizer), tmp_path / "it") == []


def save_png(path, pixels):
    from matplotlib.image import imsave

    imsave(path, pixels)
    return path


def test_images_of_files(tmp_path):
    colours = RNG.random((6, 5, 3))
    png = save_png(tmp_path / "colours.png", colours)
    np.testing.assert_allclose(read_image(png, (3, 6, 5)), colours.transpose(2, 0, 1), atol=1 / 255)
    grey = read_image(png, (1, 6, 5))
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey[0], colours @ [0.299, 0.587, 0.114], atol=1 / 255)
    clear = np.concatenate([colours, np.zeros((6, 5, 1))], axis=2)
    seen = read_image(save_png(tmp_path / "clear.png", clear), (3, 6, 5))
    np.testing.assert_allclose(seen, 1)
    np.save(tmp_path / "one.npy", colours[..., 0])
    np.testing.assert_allclose(
        read_image(tmp_path / "one.npy", (1, 6, 5))[0], colours[..., 0], rtol=1e-6
    )


def test_images_that_cannot_be_taken(tmp_path):
    png = save_png(tmp_path / "wide.png", np.zeros((4, 8, 3)))
    with pytest.raises(FileError, match=r"wide.png has 4x8 pixels, expected 6x5"):
        read_image(png, (3, 6, 5))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FileError, match=r"text.png is no PNG, or a damaged one"):
        read_image(tmp_path / "text.png", (3, 6, 5))
    with pytest.raises(FileError, match=r"none.png"):
        read_image(tmp_path / "none.png", (3, 6, 5))
    np.save(tmp_path / "two.npy", np.zeros((2, 1, 6, 5)))
    with pytest.raises(FileError, match=r"two.npy holds 2 images, expected one"):
        read_image(tmp_path / "two.npy", (1, 6, 5))


def test_nothing_is_imported_before_it_is_drawn():
    import subprocess

    code = "import sys, framework.explain; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
