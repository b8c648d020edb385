"""Arrays as bytes: what we write is what the safetensors library writes, and reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from privacy.arrays import KINDS, decode, encode, parts

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
