"""DataLoader: order, determinism over workers, exact resume, errors, and threads that end."""

import contextvars
import gc
import threading
import time

import numpy as np
import pytest

from framework.autograd.tensor import Tensor
from framework.data import (
    ArrayDataset,
    Compose,
    DataLoader,
    Dataset,
    LoaderError,
    OneHot,
    RandomCrop,
    RandomHorizontalFlip,
    augmentation_draws,
)

X = np.arange(23 * 16, dtype=np.float32).reshape(23, 1, 4, 4)
DATA = ArrayDataset(X, np.arange(23))


def batches(loader):
    return [tuple(np.asarray(tensor.data) for tensor in batch) for batch in loader]


def order(loader):
    return [label for _, labels in batches(loader) for label in labels.tolist()]


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        for p, q in zip(left, right, strict=True):
            assert p.dtype == q.dtype
            np.testing.assert_array_equal(p, q)


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("framework-loader")]


def test_batches_are_tuples_of_tensors_on_the_device():
    loader = DataLoader(DATA, batch_size=5, device="cpu")
    got = list(loader)
    assert len(got) == len(loader) == 5
    assert [len(y.data) for _, y in got] == [5, 5, 5, 5, 3]
    tensors = [tensor for batch in got for tensor in batch]
    assert all(isinstance(t, Tensor) and str(t.device) == "cpu" for t in tensors)
    assert order(loader) == list(range(23))


def test_drop_last():
    loader = DataLoader(DATA, batch_size=5, drop_last=True)
    assert len(loader) == 4 and order(loader) == list(range(20))
    assert len(DataLoader(ArrayDataset(X[:20]), batch_size=5, drop_last=True)) == 4


def test_shuffle_is_keyed_by_seed_and_epoch():
    loader = DataLoader(DATA, batch_size=4, shuffle=True, seed=7)
    first, second = order(loader), order(loader)
    assert sorted(first) == list(range(23)) == sorted(second)
    assert first != list(range(23)) and first != second
    other = DataLoader(DATA, batch_size=6, shuffle=True, seed=7)
    assert order(other) == first and order(other) == second
    other.set_epoch(0)
    assert order(other) == first
    assert order(DataLoader(DATA, batch_size=4, shuffle=True, seed=8)) != first


def test_the_epoch_counts_completed_and_broken_iterations():
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    assert loader.epoch == 0
    for _ in loader:
        assert loader.epoch == 0
    assert loader.epoch == 1
    for _ in loader:
        break
    assert loader.state_dict()["epoch"] == 1 and loader.state_dict()["position"] == 1
    want = DataLoader(DATA, batch_size=4, shuffle=True)
    want.set_epoch(2)
    assert order(loader) == order(want)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("prefetch", [1, 4])
def test_any_number_of_workers_gives_the_same_batches(workers, prefetch):
    def make(**how):
        return DataLoader(
            DATA,
            batch_size=4,
            shuffle=True,
            seed=1,
            transform=Compose(RandomHorizontalFlip(), RandomCrop(3, padding=1)),
            target_transform=OneHot(23),
            **how,
        )

    alone, together = make(), make(workers=workers, prefetch=prefetch)
    for _ in range(2):
        same(batches(alone), batches(together))


class Uneven(Dataset):
    """The earlier a sample, the longer it takes."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.002 * (12 - index))
        return index


def test_order_is_kept_whatever_the_threads_speed():
    loader = DataLoader(Uneven(), batch_size=2, workers=4)
    assert [x.tolist() for (x,) in batches(loader)] == [[2 * i, 2 * i + 1] for i in range(6)]


def test_prefetch_bounds_the_work_ahead():
    made = []

    def count(x):
        made.append(len(x))
        return x

    loader = DataLoader(DATA, batch_size=1, workers=2, prefetch=2, transform=count)
    for number, _ in enumerate(loader):
        if number == 3:
            time.sleep(0.05)
            assert 4 <= len(made) <= 4 + 2 * 2
            break


def test_augmentation_is_keyed_by_sample_not_by_batch():
    flip = RandomHorizontalFlip()
    seen = {}
    for size, shuffle in ((4, True), (7, False)):
        loader = DataLoader(DATA, batch_size=size, shuffle=shuffle, seed=5, transform=flip)
        for x, y in batches(loader):
            for image, label in zip(x, y.tolist(), strict=True):
                np.testing.assert_array_equal(image, seen.setdefault(label, image))
    u = augmentation_draws(23, 1, seed=5, epoch=0)
    np.testing.assert_array_equal(np.stack([seen[i] for i in range(23)]), flip(X, u))
    flipped = [bool((seen[i] != X[i]).any()) for i in range(23)]
    assert True in flipped and False in flipped


def test_augmentation_changes_with_the_epoch_and_the_draws_have_a_fixed_prefix():
    a, b = augmentation_draws(50, 3, 0, 0), augmentation_draws(50, 3, 0, 1)
    assert (a != b).mean() > 0.99
    np.testing.assert_array_equal(augmentation_draws(20, 3, 0, 0), a[:20])
    assert a.dtype == np.float32 and a.min() >= 0 and a.max() < 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_resume_in_the_middle_of_an_epoch(workers, stop):
    def make():
        return DataLoader(
            DATA,
            batch_size=4,
            shuffle=True,
            seed=2,
            workers=workers,
            transform=RandomHorizontalFlip(),
        )

    whole = make()
    want = batches(whole) + batches(whole)

    first = make()
    got = batches(first)  # epoch 0
    state = first.state_dict()
    for number, batch in enumerate(first):
        if number == stop:
            break
        got.append(tuple(np.asarray(t.data) for t in batch))
        state = first.state_dict()
    second = make()
    second.load_state_dict(state)
    got += batches(second)
    same(got, want)
    assert second.state_dict()["epoch"] == 2 and second.state_dict()["position"] == 0


def test_a_state_saved_with_the_last_batch_in_hand_ends_its_epoch():
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    states = [loader.state_dict() for _ in loader]
    assert states[-1]["position"] == len(loader) == 6
    resumed = DataLoader(DATA, batch_size=4, shuffle=True)
    resumed.load_state_dict(states[-1])
    assert order(resumed) == []
    assert order(resumed) == order(loader)


def test_a_state_of_another_loader_is_refused():
    state = DataLoader(DATA, batch_size=4, shuffle=True).state_dict()
    for other, name in (
        (DataLoader(DATA, batch_size=5, shuffle=True), "batch_size 4, this loader 5"),
        (DataLoader(DATA, batch_size=4), "shuffle True, this loader False"),
        (DataLoader(ArrayDataset(X[:9]), 4, shuffle=True), "samples 23, this loader 9"),
    ):
        with pytest.raises(ValueError, match=name):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="epoch 0, batch 7 of 6"):
        DataLoader(DATA, batch_size=4, shuffle=True).load_state_dict({**state, "position": 7})


def fails_at_13(x):
    if (x[:, 0, 0, 0] == 13 * 16).any():
        raise ZeroDivisionError("thirteen")
    return x


@pytest.mark.parametrize("workers", [0, 3])
def test_a_failing_transform_is_named_with_batch_and_samples(workers):
    loader = DataLoader(
        DATA, batch_size=5, workers=workers, transform=Compose(np.ascontiguousarray, fails_at_13)
    )
    got = []
    with pytest.raises(
        LoaderError,
        match=r"batch 2 of epoch 0 \(samples 10, 11, 12, 13, 14\): fails_at_13 failed: "
        "ZeroDivisionError: thirteen, at sample 13",
    ) as caught:
        for _, y in loader:
            got.append(y.data.tolist())
    assert got == [list(range(5)), list(range(5, 10))]
    assert caught.value.sample == 13
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not loader_threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_stuck_worker_is_found_with_its_stack(workers):
    release = threading.Event()

    def waits_at_13(x):
        if (x[:, 0, 0, 0] == 13 * 16).any():
            release.wait()
        return x

    loader = DataLoader(DATA, batch_size=5, workers=workers, transform=waits_at_13, timeout=0.2)
    got = []
    try:
        message = r"^batch 2 of epoch 0 \(samples 10, 11, 12, 13, 14\) is not made after 0\.2 s .*"
        stack = r"loader\.py:\d+ in make > .* in _arrays > .*_loader\.py:\d+ in waits_at_13"
        with pytest.raises(LoaderError, match=message + stack) as caught:
            for _, y in loader:
                got.append(y.data.tolist())
        assert got == [list(range(5)), list(range(5, 10))]
        assert "release.wait()" in caught.value.__notes__[0]
        assert len(loader_threads()) <= 1  # the stuck one
    finally:
        release.set()
    deadline = time.monotonic() + 10
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loader_threads()
    loader.transforms[0] = None
    assert len(list(loader)) == 5  # and again, from the start


def test_a_timeout_of_the_data_is_its_own_error():
    class Slow(Uneven):
        def __getitem__(self, index):
            raise TimeoutError("server")

    with pytest.raises(LoaderError, match="TimeoutError: server"):
        list(DataLoader(Slow(), batch_size=4, workers=2))


class Broken(Uneven):
    def __getitem__(self, index):
        if index == 5:
            raise OSError("cannot read")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_sample_is_named(workers):
    with pytest.raises(
        LoaderError,
        match=r"batch 1 .*reading Broken failed: OSError: cannot read, sample 5 of Broken",
    ) as caught:
        list(DataLoader(Broken(), batch_size=4, workers=workers))
    assert isinstance(caught.value.__cause__, OSError)


def test_a_target_transform_without_a_target_is_named():
    with pytest.raises(LoaderError, match="finding array 1 for its transform failed"):
        list(DataLoader(ArrayDataset(X), target_transform=OneHot(2)))


def test_threads_end_with_the_iteration():
    loader = DataLoader(DATA, batch_size=2, workers=3)
    list(loader)
    assert not loader_threads()
    for _ in loader:
        assert loader_threads()
        break
    gc.collect()
    assert not loader_threads()
    iterator = iter(loader)
    next(iterator)
    del iterator
    gc.collect()
    assert not loader_threads()


def test_workers_allocate_as_their_caller_does():
    alignment = pytest.importorskip("kernels.cpu.alignment")
    if not alignment.align_arrays():
        pytest.skip("arrays are aligned on 64-bit Linux and macOS only")
    from numpy._core.multiarray import get_handler_name

    def allocators(workers):
        made = []

        def note(x):
            made.append((threading.current_thread(), get_handler_name(x * 2)))
            return x

        list(DataLoader(DATA, batch_size=4, workers=workers, transform=note))
        assert workers == 0 or threading.main_thread() not in [thread for thread, _ in made]
        return {name for _, name in made}

    def aligned():
        assert alignment.align_arrays()
        return allocators(2)

    assert contextvars.copy_context().run(aligned) == {"aligned to 64 bytes"}
    # a context with NumPy's own allocator stays with it
    assert contextvars.Context().run(allocators, 2) == {"default_allocator"}


def test_an_old_iterator_does_not_disturb_the_state_of_a_new_one():
    loader = DataLoader(DATA, batch_size=4)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    next(old)
    next(old)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": True}, "workers is True"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"timeout": 0}, "timeout is 0, expected seconds above 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        (
            {"batch_size": 24, "drop_last": True},
            "batch_size 24 with drop_last leaves nothing of 23",
        ),
    ],
)
def test_wrong_arguments(how, message):
    with pytest.raises(ValueError, match=message):
        DataLoader(DATA, **how)


def test_wrong_datasets_and_epochs():
    with pytest.raises(TypeError, match="dataset is ndarray, expected a Dataset; wrap arrays"):
        DataLoader(X)
    with pytest.raises(ValueError, match="dataset has no samples"):
        DataLoader(ArrayDataset(X[:0]))
    with pytest.raises(ValueError, match="epoch is -1"):
        DataLoader(DATA).set_epoch(-1)
    with pytest.raises(ValueError, match="'cpuu'"):
        list(DataLoader(DATA, device="cpuu"))


@pytest.mark.cuda
def test_batches_on_cuda_are_the_ones_on_the_cpu():
    def make(device):
        return DataLoader(
            DATA, 4, shuffle=True, workers=2, transform=RandomCrop(3, padding=1), device=device
        )

    got = list(make("cuda"))
    assert all(tensor.device.kind == "cuda" for batch in got for tensor in batch)
    same([tuple(t.data.get() for t in batch) for batch in got], batches(make("cpu")))
