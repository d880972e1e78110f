"""The algebra of views against numpy, whose strides do the same for sizes that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpipe_kernels.cpu.lowering.extent import Extent, Unit, extent_of, over, times
from optpipe_kernels.cpu.lowering.view import External, View, new_buffer, row_major

PLACE = External("input", "x")
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def view_of(size):
    extents = tuple(map(Extent, size))
    return View(PLACE, "f32", extents, row_major(extents))


def values(view, whole):
    """What a view with plain extents shows of an array of 32-bit numbers."""
    shape, stride = ([it.fixed for it in part] for part in (view.size, view.stride))
    flat = whole.reshape(-1)[view.start.fixed :]
    return np.lib.stride_tricks.as_strided(flat, shape, [4 * it for it in stride])


@st.composite
def walks(draw):
    """An array and a view of it that went the same way through permutes, slices, selects and expands."""
    size = draw(sizes)
    whole = np.arange(np.prod(size), dtype=np.int32).reshape(size)
    array, view = whole, view_of(size)
    for step in draw(st.lists(st.sampled_from(["permute", "slice", "select", "expand"]), max_size=4)):
        dim = draw(st.integers(0, array.ndim - 1))
        if step == "permute":
            order = tuple(draw(st.permutations(range(array.ndim))))
            array, view = array.transpose(order), view.permute(order)
        elif step == "slice":
            begin = draw(st.integers(0, array.shape[dim] - 1))
            count = draw(st.integers(1, array.shape[dim] - begin))
            array = _cut(array, dim, begin, count)
            view = view.slice(dim, begin, Extent(count))
        elif step == "select" and array.ndim > 1:
            index = draw(st.integers(0, array.shape[dim] - 1))
            array, view = array[(slice(None),) * dim + (index,)], view.select(dim, index)
        elif step == "expand":
            wanted = (2, *(3 if n == 1 else n for n in array.shape)) if array.ndim < 5 else array.shape
            array, view = np.broadcast_to(array, wanted), view.expand(tuple(map(Extent, wanted)))
    return whole, array, view


def _cut(array, dim, begin, count):
    return array[(slice(None),) * dim + (slice(begin, begin + count),)]


@given(walks())
def test_a_view_shows_what_numpy_shows(walk):
    whole, array, view = walk
    np.testing.assert_array_equal(values(view, whole), array)


@given(walks(), st.data())
def test_a_reshape_shows_the_same_elements_or_says_that_they_must_be_copied(walk, data):
    whole, array, view = walk
    factors = data.draw(st.permutations(_factors(array.size)))
    wanted = tuple(factors) or (1,)
    reshaped = view.reshape(tuple(map(Extent, wanted)))
    if reshaped is not None:
        np.testing.assert_array_equal(values(reshaped, whole), array.reshape(wanted))
    else:
        assert not array.flags.c_contiguous, "memory in order takes any shape"


def _factors(n):
    found, divisor = [], 2
    while n > 1:
        if n % divisor:
            divisor += 1
        else:
            found.append(divisor)
            n //= divisor
    return found


@given(sizes)
def test_contiguous_is_what_numpy_calls_so(size):
    assert view_of(size).contiguous
    turned = view_of(size).permute(tuple(reversed(range(len(size)))))
    if turned.contiguous:
        assert np.empty(size).T.flags.c_contiguous


def test_sizes_of_a_step_split_and_join():
    made = new_buffer("f32", (Extent(1, Unit.T), Extent(192)))
    heads = made.reshape((Extent(1, Unit.T), Extent(3), Extent(64)))
    assert heads.stride == (Extent(192), Extent(64), Extent(1))
    assert heads.reshape((Extent(3, Unit.T), Extent(64))).stride == (Extent(64), Extent(1))
    moved = heads.permute((1, 0, 2))
    assert moved.reshape((Extent(3, Unit.T), Extent(64))) is None
    assert made.slice(1, 64, Extent(64)).start == Extent(64)
    assert made.reshape((Extent(192), Extent(1, Unit.T))).stride == (Extent(1, Unit.T), Extent(1))


def test_a_buffer_has_one_count():
    assert new_buffer("f32", (Extent(1, Unit.T), Extent(1, Unit.T))) is None
    assert new_buffer("f32", (Extent(4), Extent(1, Unit.M))) is None
    assert new_buffer("i64", (Extent(4), Extent(1, Unit.R))).place.bytes == 32


def test_a_window_that_two_counts_would_move_is_none():
    view = View(PLACE, "f32", (Extent(2), Extent(1, Unit.T)), (Extent(1, Unit.T), Extent(1)))
    assert view.select(0, 1).start == Extent(1, Unit.T)
    assert view.select(0, 1).slice(0, 3, Extent(1)) is None
    assert view.select(0, 0).slice(0, 3, Extent(1)).start == Extent(3)


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (7, Extent(7)),
        ("T", Extent(1, Unit.T)),
        ("3*B", Extent(3, Unit.B)),
        ("T + 1", None),
        ("T*B", None),
        ("Q", None),
    ],
)
def test_extents_of_a_programs_sizes(dim, expected):
    assert extent_of(dim) == expected


def test_extents_multiply_and_divide_where_the_result_is_one():
    assert times(Extent(2, Unit.T), Extent(3)) == Extent(6, Unit.T)
    assert times(Extent(2, Unit.T), Extent(3, Unit.B)) is None
    assert over(Extent(6, Unit.T), Extent(2, Unit.T)) == Extent(3)
    assert over(Extent(6, Unit.T), Extent(4)) is None
    assert over(Extent(6), Extent(2, Unit.T)) is None
