"""Text as data: windows, streams, random places, buckets, padded sequences; exact resume."""

from __future__ import annotations

import numpy as np
import pytest

from framework.data import (
    BucketSampler,
    DataError,
    DataLoader,
    RandomSampler,
    Sequences,
    StreamSampler,
    Windows,
)

IDS = np.arange(1000, 1103)


def streamed(streams=4, window=5, batches=None):
    sampler = StreamSampler(len(IDS), window, streams, batches)
    windows = Windows(IDS, window, sampler.length)
    return DataLoader(windows, streams, sampler=sampler, device="cpu")


def test_streams_go_on_where_they_stopped():
    """A hundred and three tokens: four streams of 25, five windows each."""
    loader = streamed()
    assert len(loader) == 5
    batches = [[x.numpy() for x in batch] for batch in loader]
    rows = np.concatenate([ids for ids, _, _ in batches], axis=1)
    np.testing.assert_array_equal(rows, IDS[:100].reshape(4, 25))
    np.testing.assert_array_equal(np.concatenate([y for *_, y in batches], axis=1), rows + 1)
    assert [fresh.tolist() for _, fresh, _ in batches] == [[True] * 4] + [[False] * 4] * 4


def test_streams_go_on_in_the_next_epoch_and_begin_again():
    loader = streamed(batches=3)
    both = [[x.numpy() for x in batch] for _ in range(2) for batch in loader]
    whole = [[x.numpy() for x in batch] for batch in streamed()]
    for got, expected in zip(both, [*whole, whole[0]], strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def random_windows(seed=0):
    windows = Windows(IDS, 8)
    sampler = RandomSampler(len(windows), 4 * 6, seed)
    return DataLoader(windows, 4, sampler=sampler, seed=seed, device="cpu")


def content(batches):
    return [[x.numpy().tolist() for x in batch] for batch in batches]


@pytest.mark.parametrize("make", [random_windows, streamed])
def test_resumed_in_the_middle_of_an_epoch(make):
    whole = make()
    expected = content([*whole, *whole])
    first = make()
    batches = iter(first)
    head = content([next(batches) for _ in range(2)])
    state = first.state_dict()
    rest = make()
    rest.load_state_dict(state)
    assert head + content([*rest, *rest]) == expected


def test_random_windows_are_of_the_seed_and_cover_the_text():
    ids, target = (x.numpy() for x in next(iter(random_windows())))
    np.testing.assert_array_equal(target[:, :-1], ids[:, 1:])
    assert content(random_windows(1)) != content(random_windows(2))
    starts = RandomSampler(len(Windows(IDS, 8)), 5000)(0)
    assert (starts.min(), starts.max()) == (0, len(IDS) - 9)


def test_another_sampler_is_refused():
    state = streamed().state_dict()
    with pytest.raises(ValueError, match="saved state has batches 5, this loader 4"):
        streamed(batches=4).load_state_dict(state)
    with pytest.raises(ValueError, match="the sampler decides the order"):
        DataLoader(Windows(IDS, 8), 2, shuffle=True, sampler=RandomSampler(4, 4))


def test_evaluation_reads_every_token_once():
    windows = Windows(IDS, 6)
    ids, target = windows.batch(windows.starts)
    np.testing.assert_array_equal(ids.reshape(-1), IDS[: 17 * 6])
    np.testing.assert_array_equal(target.reshape(-1), IDS[1 : 17 * 6 + 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Windows(IDS[:0], 4), "the text is empty"),
        (
            lambda: Windows(IDS, 103),
            "window is 103, but the text has 103 tokens: .*at least 104.*at most 102",
        ),
        (lambda: Windows(IDS[:1], 64), "has 1 token: it is too short, expected at least 65 tokens"),
        (lambda: Windows(IDS, 0), "window is 0, expected an integer of at least 1"),
        (lambda: Windows(IDS * 1.0, 4), r"ids are float64 \(103,\), expected integers"),
        (lambda: streamed(streams=30), "30 streams of a text of 103 tokens have 3 each, too few"),
        (lambda: RandomSampler(10, 0), "count is 0"),
        (lambda: BucketSampler([1.5], 2), r"lengths are float64 \(1,\)"),
        (lambda: Sequences([IDS[:0]], np.zeros(1)), r"sequence 0 is int64 \(0,\), .*at least 1"),
        (lambda: Sequences([IDS], np.zeros(2)), "there are 1 sequences and 2 targets"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
    assert issubclass(DataError, ValueError)


def test_buckets_hold_similar_lengths_and_every_sample_once():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    sampler = BucketSampler(lengths, 16, seed=3, pool=20)
    order = sampler(0)
    np.testing.assert_array_equal(np.sort(order), np.arange(1003))
    assert (order != sampler(1)).any()
    np.testing.assert_array_equal(order, BucketSampler(lengths, 16, seed=3, pool=20)(0))

    def padding(order):
        batches = [lengths[order[i : i + 16]] for i in range(0, 1003, 16)]
        return sum(batch.max() * len(batch) - batch.sum() for batch in batches)

    assert padding(order) < 0.2 * padding(np.random.default_rng(1).permutation(1003))


def test_sequences_for_a_decoder():
    """Source, its lengths, what the decoder reads, what it has to say; -100 does not count."""
    source = [np.array([4, 5, 6]), np.array([7])]
    target = [np.array([1, 8, 2]), np.array([1, 9, 9, 2])]
    data = Sequences(source, target, padding=3)
    loader = DataLoader(data, 2, sampler=BucketSampler(data.lengths, 2), device="cpu")
    ids, lengths, previous, said = (x.numpy() for x in next(iter(loader)))
    first = lengths.argmax()
    np.testing.assert_array_equal(ids[first], [4, 5, 6])
    np.testing.assert_array_equal(ids[1 - first], [7, 3, 3])
    np.testing.assert_array_equal(previous[first], [1, 8, 3])
    np.testing.assert_array_equal(said[first], [8, 2, -100])
    np.testing.assert_array_equal(said[1 - first], [9, 9, 2])
