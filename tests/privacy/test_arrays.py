"""Arrays as bytes: what we write is what the safetensors library writes, and reads."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from privacy.arrays import KINDS, WireError, decode, encode, laid_out, memory, parts, views

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.uint16, np.int8]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@given(st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), ARRAYS, max_size=6))
def test_a_file_is_byte_for_byte_the_librarys(arrays: dict[str, np.ndarray]) -> None:
    assert b"".join(parts(arrays)) == save(arrays)


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_library_reads_a_file_with_any_metadata(metadata: dict[str, str]) -> None:
    found = load(b"".join(parts({"w": np.arange(3, dtype=np.float32)}, metadata)))
    assert np.array_equal(found["w"], [0, 1, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_any_layout_in_memory_arrives_as_itself(kind: str) -> None:
    whole = np.arange(-12, 12, dtype=np.float32).reshape(4, 6)
    arrays = {"turned": whole.T, "sparse": whole[::2, ::3], "one": np.full((), 3, np.float32)}
    found = decode(encode(arrays, kind), {name: a.shape for name, a in arrays.items()}, kind)
    for name, array in arrays.items():
        assert np.allclose(found[name], array, atol=0.2 if kind == "int8" else 0)


def test_a_large_model_is_the_same_bytes_and_its_arrays_are_views_of_them() -> None:
    arrays = {
        "b": np.arange(2_000_000, dtype=np.float32).reshape(2, -1),
        "a": np.ones(3, np.float32),
    }
    laid = laid_out({name: a.shape for name, a in arrays.items()})
    for name, array in arrays.items():
        laid[name][...] = array
    for data in (encode(arrays), encode(laid)):
        assert bytes(memory(data)) == save(arrays)
        found = decode(data, {name: a.shape for name, a in arrays.items()})
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())
        assert all(np.shares_memory(a, np.frombuffer(data, np.uint8)) for a in found.values())
        assert not any(a.flags.writeable for a in found.values())
    assert np.shares_memory(encode(laid), laid["b"])


def test_what_is_laid_out_and_small_is_encoded_as_bytes_and_another_array_in_it_counts() -> None:
    laid = laid_out({"w": (2, 3), "v": (), "none": (0, 4)})
    for array in laid.values():
        array[...] = 1
    assert encode(laid) == save(dict(laid))
    laid["w"] = np.full((2, 3), 7, np.float32)
    assert encode(laid) == save(dict(laid))


HEADS = st.recursive(
    st.sampled_from(["F32", "U16", "I8", "F64", 0, 4, 8, -1, 2**70, 1.0, True, None]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U16", "I8"]),
        "shape": st.lists(st.integers(0, 3), max_size=2),
        "data_offsets": st.tuples(st.integers(0, 12), st.integers(0, 12)),
    }
)


@given(st.dictionaries(st.sampled_from("abc"), ENTRY | HEADS, max_size=3), st.binary(max_size=24))
def test_what_is_read_is_what_the_library_reads_and_nothing_else(head: object, body: bytes) -> None:
    text = json.dumps(head).encode()
    data = len(text).to_bytes(8, "little") + text + body
    try:
        found, _ = views(data)
    except WireError:
        return
    right = load(data)
    assert found.keys() == right.keys()
    for name, array in found.items():
        assert array.dtype == right[name].dtype
        assert array.tobytes() == right[name].tobytes()


@given(
    st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), ARRAYS, max_size=4),
    st.integers(0, 400),
    st.integers(0, 255),
)
def test_a_changed_byte_is_read_as_the_library_reads_it_or_refused(
    arrays: dict[str, np.ndarray], at: int, byte: int
) -> None:
    data = bytearray(save(arrays))
    data[at % len(data)] = byte
    try:
        found, _ = views(bytes(data))
    except WireError:
        return
    right = load(bytes(data))
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in right.items()}


@given(st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), ARRAYS, max_size=6))
def test_whatever_the_library_writes_is_read(arrays: dict[str, np.ndarray]) -> None:
    found, metadata = views(save(arrays, {"a": "b"}))
    assert metadata == {"a": "b"}
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in arrays.items()}
