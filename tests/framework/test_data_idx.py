"""The IDX reader: every element type, and every way in which a file can be wrong."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from framework.data import DataError, read_idx

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def encode(array):
    code = CODES[array.dtype.str[1:]]
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return (
        bytes([0, 0, code, array.ndim])
        + sizes
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


SAMPLE = encode(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("zipped", [False, True])
def test_reads_every_type_plain_and_zipped(tmp_path, code, zipped):
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(code)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(encode(array), mtime=0) if zipped else encode(array))
    got = read_idx(path)
    np.testing.assert_array_equal(got, array)
    assert got.dtype == np.dtype(code) and got.dtype.isnative
    assert got.flags.writeable and got.flags.c_contiguous


def test_reads_an_array_without_elements(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(encode(np.zeros((0, 28, 28), np.uint8)))
    assert read_idx(path).shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes are too few"),
        (b"\0\0\x08", "3 bytes are too few"),
        (b"\1" + SAMPLE[1:], "not an IDX file"),
        (b"\0\0\x0a" + SAMPLE[3:], "not an IDX file"),
        (b"\0\0\x08\0" + SAMPLE[4:], "not an IDX file"),
        (b"\0\0\x08\xff" + SAMPLE[4:], "not an IDX file"),
        (SAMPLE[:10], "truncated inside its header"),
        (SAMPLE[:-1], "truncated"),
        (SAMPLE + b"x", "trailing bytes after the 24"),
        (gzip.compress(SAMPLE, mtime=0)[:-9], "corrupt gzip data"),
        (gzip.compress(SAMPLE, mtime=0)[:-8] + b"12345678", "corrupt gzip data"),
        (gzip.compress(SAMPLE[:-1], mtime=0), "truncated"),
        (gzip.compress(SAMPLE + b"x", mtime=0), "trailing bytes"),
        (gzip.compress(SAMPLE, mtime=0) + b"rest", "corrupt gzip data"),
        (b"\x1f\x8bnot gzip", "corrupt gzip data"),
        (b"<!DOCTYPE html>", "not an IDX file"),
    ],
)
def test_a_wrong_file_is_one_line_with_name_and_reason(tmp_path, content, reason):
    path = tmp_path / "wrong-images"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert str(path) in message and reason in message and "\n" not in message


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="nothing-here: cannot be read"):
        read_idx(tmp_path / "nothing-here")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 4, (1000, 1000, 900), (0, 2**32 - 1, 2**32 - 1)])
def test_an_absurd_header_reserves_no_memory(tmp_path, shape, zipped):
    content = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"data"
    path = tmp_path / "absurd"
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="absurd: (header announces|truncated)"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_small_zip_of_many_zeros_stops_at_the_limit(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(encode(np.zeros(3_000_000, np.uint8))))
    with pytest.raises(DataError, match="above the limit of 2000000 bytes"):
        read_idx(path, max_bytes=2_000_000)
    assert read_idx(path).size == 3_000_000


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), zipped=st.booleans())
def test_a_mutated_file_is_read_or_refused_cleanly(tmp_path, data, zipped):
    content = bytearray(gzip.compress(SAMPLE, mtime=0) if zipped else SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path / "mutated"
    path.write_bytes(bytes(content[:cut]) if data.draw(st.booleans()) else bytes(content))
    try:
        array = read_idx(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        content = path.read_bytes()
        assert encode(array) == (gzip.decompress(content) if zipped else content)
