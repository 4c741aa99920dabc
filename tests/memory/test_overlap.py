"""Which tensors lie over the same bytes. The oracle writes the elements of each view out, one by one."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from tied.memory import overlap
from tied.memory.overlap import overlapping, pieces, size_of


def elements(view: Tensor) -> set[int]:
    """Return the places in its storage that a view shows, written out."""
    places = {view.storage_offset()}
    for size, stride in zip(view.shape, view.stride(), strict=True):
        places = {place + step * stride for place in places for step in range(size)}
    return places if view.numel() else set()


def joined(views: list[Tensor]) -> list[list[int]]:
    """Return the groups by brute force: every pair, then every chain."""
    sets = [elements(view) for view in views]
    groups: list[tuple[list[int], set[int]]] = []
    for index, places in enumerate(sets):
        touching = [group for group in groups if group[1] & places]
        groups = [group for group in groups if group not in touching]
        members = sorted([index, *(i for group in touching for i in group[0])])
        groups.append((members, places.union(*(group[1] for group in touching))))
    return sorted(members for members, _ in groups if len(members) > 1)


def random_view(buffer: Tensor, choose: random.Random) -> Tensor:
    shape = choose.choice([(48,), (6, 8), (8, 6), (4, 3, 4)])
    view = buffer.view(shape)
    for _ in range(choose.randint(0, 3)):
        dim = choose.randrange(view.dim())
        begin = choose.randrange(view.shape[dim])
        view = view.narrow(dim, begin, choose.randint(1, view.shape[dim] - begin))
        if choose.random() < 0.4 and view.shape[dim] > 2:
            view = view[(slice(None),) * dim + (slice(None, None, 2),)]
        if choose.random() < 0.4:
            view = view.transpose(0, -1)
    return view


@pytest.mark.parametrize("seed", range(60))
def test_groups_are_those_of_brute_force(seed):
    choose = random.Random(seed)
    buffer = torch.zeros(48)
    views = [random_view(buffer, choose) for _ in range(choose.randint(2, 9))]
    assert overlapping(views) == joined(views), [(v.shape, v.stride(), v.storage_offset()) for v in views]


def test_a_short_interval_inside_an_earlier_long_one():
    """The case that a sweep with the last end, instead of the furthest, misses."""
    buffer = torch.zeros(12)
    long, short, late = buffer[:10], buffer[2:4], buffer[8:]
    assert overlapping([long, short, late]) == [[0, 1, 2]]
    assert overlapping([late, short, long]) == [[0, 1, 2]]
    assert overlapping([short, late]) == []


def test_neighbours_do_not_overlap():
    buffer = torch.zeros(12)
    assert overlapping([buffer[:4], buffer[4:8], buffer[8:]]) == []
    assert overlapping([buffer[:5], buffer[4:8], buffer[8:]]) == [[0, 1]]


def test_columns_interleave_without_touching():
    matrix = torch.zeros(5, 12)
    columns = [matrix[:, :4], matrix[:, 4:8], matrix[:, 8:]]
    assert overlapping(columns) == []
    assert overlapping([*columns, matrix[:, 3:5]]) == [[0, 1, 3]]
    assert overlapping([matrix[::2], matrix[1::2]]) == []
    assert overlapping([matrix[:, ::2], matrix[:, 1::2], matrix[1]]) == [[0, 1, 2]]


def test_pieces_of_one_column_in_separate_rows_are_apart():
    matrix = torch.zeros(5, 12)
    cells = [matrix[0, 5:7], matrix[3, 5:7]]
    assert overlapping([matrix[:, :4], *cells]) == []
    assert overlapping([matrix[:, :4], *cells[::-1]]) == []
    assert overlapping([matrix[:, :6], *cells]) == [[0, 1, 2]]


def test_columns_that_wrap_round_a_row_are_compared_all_the_same():
    matrix = torch.zeros(5, 12)
    wrapped = matrix.flatten()[10:].as_strided((4, 4), (12, 1))  # the end of one row and the begin of the next
    assert overlapping([wrapped, matrix[:, :2]]) == [[0, 1]]
    assert overlapping([wrapped, matrix[:, 4:8]]) == []


def test_columns_that_wrap_by_one_byte_are_compared_all_the_same():
    matrix = torch.zeros(5, 12, dtype=torch.int8)
    wrapped = matrix.flatten()[11:].as_strided((4, 2), (12, 1))
    assert overlapping([wrapped, matrix[:, :1]]) == [[0, 1]]
    assert overlapping([wrapped, matrix[:, 1:11]]) == []


def test_a_dimension_of_one_leaves_no_gap():
    (piece,) = pieces(torch.zeros(100).as_strided((1, 5), (50, 1)))
    assert piece.is_dense
    (piece,) = pieces(torch.zeros(100).as_strided((2, 5), (50, 1)))
    assert not piece.is_dense


def test_overlap_is_counted_in_bytes():
    words = torch.zeros(4, dtype=torch.int32)
    halves = words.view(torch.int16)
    assert overlapping([words[:2], halves[4:]]) == []
    assert overlapping([words[:2], halves[3:]]) == [[0, 1]]


def test_the_flattened_weights_of_a_recurrent_layer_share_nothing():
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    weights = list(lstm.parameters())
    flat = torch.zeros(sum(w.numel() for w in weights))
    parts = flat.split([w.numel() for w in weights])
    views = [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]
    assert overlapping(views) == []
    assert overlapping([*views, views[3].t()]) == [[3, len(views)]]


def test_separate_storages_over_one_memory():
    array = torch.zeros(8).numpy()
    one, two = torch.from_numpy(array), torch.from_numpy(array)
    assert one.untyped_storage()._cdata != two.untyped_storage()._cdata
    assert overlapping([one, two]) == [[0, 1]]


def test_nothing_is_shared_by_what_is_empty():
    buffer = torch.zeros(8)
    assert overlapping([torch.zeros(0), torch.zeros(0), buffer[3:3], buffer]) == []
    assert overlapping([buffer[:6], buffer[2:2], buffer[4:]]) == [[0, 2]]


def test_views_on_meta_are_seen_by_their_storage():
    weight = torch.zeros(4, 6, device="meta")
    other = torch.zeros(4, 6, device="meta")
    assert overlapping([weight, other, weight.t(), other[:, 3:], weight[1:]]) == [[0, 2, 4], [1, 3]]
    assert overlapping([weight[:2], weight[2:], other]) == []


def test_fake_tensors_are_seen_by_their_storage():
    with FakeTensorMode():
        weight = torch.zeros(4, 6)
        assert overlapping([weight, torch.zeros(4, 6), weight.t()]) == [[0, 2]]


def test_what_is_not_initialized_shares_nothing():
    lazy = [nn.UninitializedParameter(), nn.UninitializedParameter(), nn.UninitializedBuffer()]
    assert overlapping(lazy) == []


def test_sparse_and_opaque_tensors_do_not_stop_the_sweep():
    sparse = torch.eye(3).to_sparse()
    assert overlapping([sparse, sparse.clone(), torch.zeros(3)]) == []


class Wrapper(torch.Tensor):
    """A tensor that only holds others, as quantized weights do."""

    @staticmethod
    def __new__(cls, data: Tensor, scale: Tensor) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data: Tensor, scale: Tensor) -> None:
        self.data_, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


def test_a_wrapper_is_what_it_holds():
    data = torch.zeros(4, 6, dtype=torch.int8)
    one, two = Wrapper(data, torch.ones(4)), Wrapper(data, torch.ones(4))
    other = Wrapper(data.clone(), torch.ones(4))
    assert overlapping([one, two, other]) == [[0, 1]]
    assert len(pieces(one)) == 2
    assert size_of(one) == 24 + 16
    assert overlapping([one, data]) == [[0, 1]]


def test_a_wrapper_joins_what_lies_under_each_of_its_parts():
    data, scale = torch.zeros(4, 6, dtype=torch.int8), torch.ones(4)
    assert overlapping([Wrapper(data, scale), data, scale, scale.clone()]) == [[0, 1, 2]]
    assert overlapping([data, scale]) == []


def test_one_object_is_one_group_whatever_it_is():
    for tensor in (torch.zeros(4), torch.zeros(4, 6).t(), torch.zeros(0), nn.UninitializedParameter()):
        assert overlapping([tensor, torch.zeros(3), tensor]) == [[0, 2]]


def test_expanded_tensors_are_where_their_memory_is():
    row = torch.zeros(6)
    assert overlapping([row.expand(4, 6), row[5:], torch.zeros(6)]) == [[0, 1]]
    assert overlapping([row[:3].expand(4, 3), row[3:].expand(2, 3)]) == []


def test_devices_are_separate_spaces():
    weight = torch.zeros(4)
    assert overlapping([weight, torch.zeros(4, device="meta")]) == []


@pytest.mark.parametrize("count", [2_000, 8_000])
def test_the_work_grows_with_the_number_of_tensors(count, monkeypatch):
    """Columns of one buffer, all interleaved, each over its neighbour: no pair but neighbours is compared."""
    compared = []
    exact = overlap.overlap
    monkeypatch.setattr(overlap, "overlap", lambda one, other: compared.append(1) or exact(one, other))
    matrix = torch.zeros(3, count + 1)
    assert overlapping([matrix[:, i : i + 2] for i in range(count)]) == [list(range(count))]
    assert len(compared) <= 2 * count
    compared.clear()
    assert overlapping([matrix[:, i : i + 1] for i in range(count)]) == []
    assert not compared
