"""Bad steps on the emulator: the device holds them back, the host hears of it one step later, and
what it had counted meanwhile is taken back.
"""

import numpy as np
import pytest

import framework as fw
from framework import functional as F, optimizers
from framework.data import DataLoader, StreamSampler, Windows
from framework.layers.carry import carries
from framework.optimizers import EMA
from framework.trainer import (
    F1,
    Callback,
    ConfusionMatrix,
    Interrupts,
    Loss,
    Metric,
    ModelCheckpoint,
    NonFiniteError,
    TerminateOnNaN,
    TopK,
    Trainer,
    checkpoint,
)
from framework.trainer.language import token_loss
from framework.trainer.store import checkpoints_in
from kernels import optimizers as kernels, reference_kernels
from models import build
from tests.cuda_emulator import streams, training, whole
from tests.cuda_emulator.conftest import require_emulator

BAD = 12  # the step, from 1: its graph has been captured before


@pytest.fixture(autouse=True)
def cupy():
    require_emulator()
    with whole.device() as module:
        yield module


class Spoil(Callback):
    """Makes the batch of step BAD a bad one, keeps what the run was before it, counts steps."""

    def __init__(self, at=BAD):
        self.at, self.heard = at, 0

    def on_step_start(self, trainer):
        if trainer.step == self.at - 1:
            self.kept = training.bits(trainer)
            self.kept = {k: list(v) if isinstance(v, list) else v for k, v in self.kept.items()}
            trainer.window[0][0].data[0, 0] = np.nan

    def on_step_end(self, trainer):
        self.heard += 1


def spoiled(capture="auto", callbacks=(), optimizer="adamw", watch=None, change=None, **options):
    """A run that meets a bad batch, and the callback that made it."""
    spoil = Spoil()
    run = training.trainer(
        "cuda", capture, optimizer, [spoil, watch or TerminateOnNaN(), *callbacks], **options
    )
    if change is not None:
        change(run)
    with pytest.raises(NonFiniteError, match=f"step {BAD}, epoch 3: the loss is nan; the batch"):
        run.fit(training.batches(), epochs=4)
    return run, spoil


def differences(run, spoil):
    now = training.bits(run)
    return [name for name in now if now[name] != spoil.kept[name]]


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
@pytest.mark.parametrize("capture", [False, "auto"])
def test_all_is_as_before_the_bad_step(optimizer, capture):
    run, spoil = spoiled(capture, optimizer=optimizer)
    assert differences(run, spoil) == []
    assert spoil.heard == BAD + 1  # the step after it had been launched
    assert (run.step, run.guard) == (BAD - 1, None)
    if capture:
        assert run._captured.whole.replays > 4
        assert run._captured.gradients.captures == 0


class Largest(Metric):
    """Not a sum, and with a state of its own."""

    name = "largest"

    def reset(self):
        self.seen = [0.0]

    def update(self, output, target):
        self.seen.append(float(output.data.max()))

    def compute(self):
        return max(self.seen)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("capture", [False, "auto"])
def test_sums_are_as_before_the_bad_step(capture, looks):
    class Looks(Callback):
        def on_gradients(self, trainer):
            pass

    more = [ConfusionMatrix(3), F1(3, ignore_index=-1), Largest(), Loss(F.cross_entropy, "mean")]
    run, spoil = spoiled(
        capture,
        callbacks=[Looks()] * looks,
        change=lambda run: run.metrics.extend([*more, TopK(2, ignore_index=0)]),
    )
    assert differences(run, spoil) == []
    assert run.samples == 16
    assert np.isfinite(run.running.compute())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_good_run_is_the_same_run_and_one_graph(accumulate):
    runs = []
    for callbacks in ((), (TerminateOnNaN(),)):
        runs.append(training.trainer("cuda", callbacks=callbacks, accumulate=accumulate))
        runs[-1].fit(training.batches(), epochs=4)
    assert training.differences(*runs) == []
    steps = runs[1]._captured
    assert (steps.whole.captures, steps.gradients.captures, steps.move.captures) == (2, 0, 0)
    runs[1].fit(training.batches(), epochs=6)
    assert steps.whole.captures == 2  # its flag is the same in the next run


@pytest.mark.parametrize("capture", [False, "auto"])
def test_the_host_waits_for_the_step_before(monkeypatch, capture):
    """Never for the one that it has just launched."""
    events, waited = [], []

    class Watch(Callback):
        def on_step_start(self, trainer):
            events.clear()
            waited.clear()

        def on_step_end(self, trainer):
            steps.append((list(events), set(waited)))

    steps = []
    waits, record, synchronize = streams.waits, streams.Event.record, streams.Event.synchronize
    monkeypatch.setattr(streams, "waits", lambda what: (waited.append(what), waits(what)))
    monkeypatch.setattr(
        streams.Event, "record", lambda e, *s: (events.append(("asked", e)), record(e, *s))
    )
    monkeypatch.setattr(
        streams.Event, "synchronize", lambda e: (events.append(("read", e)), synchronize(e))
    )
    run = training.trainer("cuda", capture, callbacks=[TerminateOnNaN(), Watch()])
    run.fit(training.batches(), epochs=3)
    assert len(steps) == 15
    for i, (happened, what) in enumerate(steps):
        assert what <= {"set()", "synchronize()"}
        asked = [e for kind, e in happened if kind == "asked"]
        read = [e for kind, e in happened if kind == "read"]
        assert len(asked) == 1
        first = i % 5 == 0  # of an epoch: the one before has been settled
        assert read == ([] if first else [steps[i - 1][0][0][1]])


@pytest.mark.parametrize("first", [False, True])
def test_no_checkpoint_holds_a_bad_step(tmp_path, first):
    saves = ModelCheckpoint(tmp_path, every_steps=1, keep=50)
    spoil = Spoil()
    others = [saves, TerminateOnNaN()] if first else [TerminateOnNaN(), saves]
    run = training.trainer("cuda", callbacks=[spoil, *others])
    with pytest.raises(NonFiniteError, match=f"step {BAD},"):
        run.fit(training.batches(), epochs=4)
    assert differences(run, spoil) == []
    states = [checkpoint.load(path) for path in checkpoints_in(tmp_path)]
    assert max(state["step"] for state in states) == BAD - 1
    for state in states:
        assert all(np.isfinite(x).all() for x in state["model"].values())


def test_a_stopped_run_settles_first(tmp_path):
    class Ask(Callback):
        def on_step_end(self, trainer):
            interrupts.asked = trainer.step == BAD

    interrupts, saves = Interrupts(), ModelCheckpoint(tmp_path)
    run, spoil = spoiled(callbacks=[Ask(), saves, interrupts])
    assert spoil.heard == BAD
    assert differences(run, spoil) == []
    assert checkpoints_in(tmp_path)
    assert not (tmp_path / "lock").exists()


class Ends(Callback):
    """Ends the run before anybody has heard of the bad step, or in the step after it."""

    def __init__(self, hook, step):
        self.state = None
        setattr(self, hook, lambda trainer: self.end(trainer, step))

    def end(self, trainer, step):
        if trainer.step == step:
            raise KeyboardInterrupt

    def on_exception(self, trainer, error):
        self.state = training.bits(trainer)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("how", "capture"),
    [
        ("on_step_end", False),
        ("on_step_end", "auto"),
        ("on_step_start", "auto"),
        ("forward", False),
        ("data", "auto"),
    ],
)
def test_what_ends_a_run_settles_first(how, capture, first, caplog):
    ends = Ends(how, BAD)
    spoil, watch = Spoil(), TerminateOnNaN()
    run = training.trainer(
        "cuda", capture, callbacks=[spoil, *[watch, ends][:: -1 if first else 1]]
    )

    def data():
        for epoch in range(4):
            batches = training.batches()
            yield batches if epoch < 2 or how != "data" else broken(batches)

    def broken(batches):
        yield from batches[:2]
        raise OSError("the disk is gone")

    class Loader:
        epochs = data()

        def __iter__(self):
            return iter(next(self.epochs))

    if how == "forward":
        loss = run.loss
        run.loss = lambda *args: ends.end(run, BAD) or loss(*args)
    with pytest.raises(OSError if how == "data" else KeyboardInterrupt) as raised:
        run.fit(Loader(), epochs=4)
    [note] = raised.value.__notes__
    assert f"before that, NonFiniteError: step {BAD}, epoch 3: the loss is nan" in note
    assert note in caplog.text
    assert differences(run, spoil) == []
    assert ends.state == spoil.kept
    assert run.guard is None


def test_a_bad_step_that_an_error_ends_half_way_is_taken_back():
    spoil = Spoil()
    run = training.trainer("cuda", False, callbacks=[spoil, TerminateOnNaN()])

    def clipped(*args):
        if run.step == BAD - 1:
            raise OSError("half-way")
        return look()

    look, run.look = run.look, clipped
    with pytest.raises(OSError, match="half-way") as raised:
        run.fit(training.batches(), epochs=4)
    assert f"step {BAD}, epoch 3: the loss is nan" in raised.value.__notes__[0]
    assert differences(run, spoil) == []


def test_a_bad_last_step_of_an_epoch_is_found_before_its_record():
    spoil = Spoil(at=10)
    run = training.trainer("cuda", callbacks=[spoil, TerminateOnNaN()])
    with pytest.raises(NonFiniteError, match="step 10, epoch 2: the loss is nan"):
        run.fit(training.batches(), epochs=4)
    assert (len(run.history), spoil.heard) == (1, 10)
    assert differences(run, spoil) == []


class LeavesOut(Callback):
    """A user's own way with batches whose loss is no number."""

    def on_gradients(self, trainer):
        trainer.skip_step = not all(np.isfinite(float(loss)) for loss in trainer.losses)


@pytest.mark.parametrize(("device", "capture"), [("cpu", False), ("cuda", False), ("cuda", "auto")])
def test_a_step_that_a_callback_leaves_out_leaves_nothing(device, capture):
    runs = []
    for callbacks in ([LeavesOut(), TerminateOnNaN()], [TerminateOnNaN(skip=True)]):
        batches = training.batches()
        batches[2][0].data[0, 0] = np.nan
        run = training.trainer(device, capture, callbacks=callbacks)
        run.fit(batches, epochs=2)
        assert (run.step, run.skipped, run.samples) == (8, 2, 57)
        runs.append(run)
    assert training.differences(*runs) == []
    assert all(np.isfinite(record["loss"]) for record in run.history)


def test_a_bad_step_before_one_that_is_left_out():
    class Skips(Callback):
        def on_gradients(self, trainer):
            trainer.skip_step = trainer.step == BAD

    run, spoil = spoiled(callbacks=[Skips()])
    assert differences(run, spoil) == []
    assert (run.skipped, spoil.heard) == (0, BAD)


def test_gradients_that_a_callback_spoils(cupy):
    class SpoilGradients(Callback):
        def on_gradients(self, trainer):
            if trainer.step == 7:
                trainer.model[0].bias.grad.data[1] = np.inf

    for capture in (False, "auto"):
        run = training.trainer("cuda", capture, callbacks=[SpoilGradients(), TerminateOnNaN()])
        with pytest.raises(NonFiniteError, match="step 8, .* and is when the step is run again"):
            run.fit(training.batches(), epochs=4)
        assert all(np.isfinite(p.data.get()).all() for p in run.model.parameters())


class Later(Callback):
    """Sets a number on the device before the 8th step."""

    def __init__(self, number, value):
        self.number, self.value = number, value

    def on_step_start(self, trainer):
        if trainer.step == 7:
            self.number.data[...] = self.value


@pytest.mark.parametrize("what", ["the loss is inf", "the gradient of 0.bias is not finite"])
def test_what_is_not_in_the_optimizers_buffers(what):
    scale = fw.zeros((), device="cuda")
    callbacks = [Later(scale, np.inf if "loss" in what else 3e38), TerminateOnNaN()]
    run = training.trainer("cuda", callbacks=callbacks)
    bias = run.model[0].bias
    run.optimizer = optimizers.SGD([p for p in run.model.parameters() if p is not bias], lr=0.1)

    def loss(output, target):
        value = F.cross_entropy(output, target)
        if "loss" in what:
            return value + scale  # with finite gradients
        small = bias * np.float32(1e-30)
        return value + (small * scale).sum() + ((bias - bias.detach()) * scale * 2).sum()

    run.loss = loss
    with pytest.raises(NonFiniteError, match=f"step 8, epoch 2: {what}; every layer"):
        run.fit(training.batches(), epochs=4)
    assert run.step == 7
    assert all(np.isfinite(p.data.get()).all() for p in run.model.parameters())


@pytest.mark.parametrize("norm", [None, 1.0])
@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize(
    ("device", "capture", "skip"),
    [
        ("cpu", False, False), ("cpu", False, True), ("cuda", False, False),
        ("cuda", "auto", False), ("cuda", "auto", True),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_infinite_gradient_is_not_hidden_by_clip_value(device, capture, skip, looks, norm):
    class Looks(Callback):
        def on_gradients(self, trainer):
            pass

    class Once(Later):
        def on_step_start(self, trainer):
            at = trainer.step + trainer.skipped
            self.number.data[...] = self.value if at == 7 or (at > 7 and not skip) else 0

    scale = fw.zeros((), device=device)
    callbacks = [Once(scale, 3e38), *[Looks()] * looks, TerminateOnNaN(skip=skip)]
    run = training.trainer(device, capture, callbacks=callbacks)
    run.clip_norm, bias = norm, run.model[0].bias
    run.loss = lambda output, target: (
        F.cross_entropy(output, target) + ((bias - bias.detach()) * scale * 2).sum()
    )
    if skip:
        run.fit(training.batches(), epochs=4)
        assert (run.step, run.skipped) == (19, 1)
    else:
        said = "step 8, epoch 2: a gradient is infinite, before clip_value limits it; every layer"
        with pytest.raises(NonFiniteError, match=said):
            run.fit(training.batches(), epochs=4)
        assert run.step == 7
        assert set(run.optimizer.state_dict()["steps"]) == {7}


def test_what_is_carried_goes_back():
    """The bad window is met with the state that was carried to it."""
    ids = np.random.default_rng(0).integers(0, 7, 200)
    sampler = StreamSampler(len(ids), 4, 3)
    fw.manual_seed(0)
    model = build("charlstm", vocabulary=7, hidden=8).to("cuda")

    class Later(Callback):
        def on_step_start(self, trainer):
            if trainer.step == 5:
                self.kept = [a.get() for c in carries(model) for a in c.kept()]
                self.loss, trainer.loss = trainer.loss, lambda o, t: token_loss(o, t) * np.inf

    later = Later()
    loader = DataLoader(Windows(ids, 4, sampler.length), 3, sampler=sampler, device="cuda")
    run = Trainer(
        model, token_loss, optimizers.SGD(model.parameters(), lr=0.5),
        callbacks=[later, TerminateOnNaN()],
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match="step 6, .*every layer's output is finite"):
        run.fit(loader)
    now = [a.get() for c in carries(model) for a in c.kept()]
    assert len(now) == 2
    for a, b in zip(now, later.kept, strict=True):
        np.testing.assert_array_equal(a, b)


class Mine(optimizers.AdamW):
    def update(self, *args):
        super().update(*args)


class MyEMA(EMA):
    def update(self):
        super().update()


def own_rule(run):
    run.optimizer = Mine(run.model.parameters(), lr=0.02)


def own_average(run):
    run.ema = MyEMA(run.model, 0.9)


@pytest.mark.parametrize("change", [own_rule, own_average])
def test_what_nobody_can_hold_is_waited_for(change):
    run, spoil = spoiled(change=change)
    assert spoil.heard == BAD - 1  # before the step
    assert run._captured.whole.captures == 0


def test_the_next_run_begins_with_nothing_found():
    run, spoil = spoiled()
    spoil.at = 99
    run.fit(training.batches(), epochs=4)
    assert run.step == BAD - 1 + 10
    assert np.isfinite(run.history[-1]["loss"])


# --- the kernels ----------------------------------------------------------------------------------


def _calls(cupy):
    draw = np.random.default_rng(0)
    p, g, m, v, w = (cupy.asarray(abs(draw.normal(size=37)).astype(np.float32)) for _ in range(5))
    yield kernels.sgd_step, p, g, m, 0.1, 0.9
    yield kernels.sgd_step, p, g, None, 0.1
    yield kernels.adam_step, p, g, m, v, 0.1
    yield kernels.adam_step, p, g, m, v, 0.1, 0.9, 0.99, 1e-8, 0.1, 3, True, w
    for rest in ((None, None), (m, None), (None, w), (m, w)):
        options = {"momentum": 0.9 * (rest[0] is not None), "centered": rest[1] is not None}
        yield (lambda *a, o=options: kernels.rmsprop_step(*a, **o)), p, g, v, *rest, 0.1
    yield kernels.adagrad_step, p, g, v, 0.1
    yield kernels.scale_, p, 0.5
    yield kernels.lerp_, p, g, 0.5


def test_a_set_flag_holds_every_kernel_and_an_unset_one_none(cupy):
    assert len(list(_calls(cupy))) == 11

    def results(call, found):
        step, *args = call
        with kernels.held_by(cupy.asarray(np.array([found], np.int32))):
            step(*args)
        return [a.get().tobytes() for a in args if hasattr(a, "get")]

    for i, before in enumerate(_calls(cupy)):
        untouched = [a.get().tobytes() for a in before if hasattr(a, "get")]
        free, moved, held = (list(_calls(cupy))[i] for _ in range(3))
        assert results(held, 1) == untouched
        free[0](*free[1:])
        assert results(moved, 0) == [a.get().tobytes() for a in free if hasattr(a, "get")]
        assert results(moved, 0) != untouched


def test_a_reference_cannot_be_held(cupy):
    for call in _calls(cupy):
        step, *args = call
        found = cupy.zeros(1, np.int32)
        with (
            reference_kernels(),
            kernels.held_by(found),
            pytest.raises(NotImplementedError, match="cannot be held by a flag"),
        ):
            step(*args)
    with pytest.raises(ValueError, match="expected int32"), kernels.held_by(cupy.zeros(1)):
        pass
