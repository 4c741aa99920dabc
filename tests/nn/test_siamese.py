"""`Siamese` sends several inputs through one tower, with shared or private batch statistics."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import tied
from tied.nn import Siamese
from tied.nn.siamese import twin


def tower() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(6, 3, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(), 5 + 2 * draw()) for _ in range(steps)]


def train(parameters, branches, steps: int = 20) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)
    for a, b in batches(steps):
        optimizer.zero_grad()
        one, other = branches(a, b)
        (one - other).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("statistics", ["shared", "private"])
def test_training_equals_plain_torch(statistics):
    """By hand: one tower called twice; for private statistics its buffers are exchanged between the calls."""
    model, plain = Siamese(tower(), statistics=statistics), tower()
    buffers = [copy.deepcopy(dict(plain.named_buffers())) for _ in range(2)]

    def branch(number, x):
        if statistics == "private":
            for name, buffer in plain.named_buffers():
                buffer.data = buffers[number][name]
        return plain(x)

    train(model.parameters(), model)
    train(plain.parameters(), lambda a, b: (branch(0, a), branch(1, b)))
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-12)
    expected = buffers if statistics == "private" else [dict(plain.named_buffers())]
    for number, known in enumerate(expected):
        for name, buffer in model.towers[number].named_buffers():
            torch.testing.assert_close(buffer, known[name], rtol=0, atol=1e-12)


def test_private_statistics_are_those_of_each_domain():
    model = Siamese(tower(), statistics="private")
    for a, b in batches(200):
        model(a, b)
    means = [branch[1].running_mean - branch[0].bias for branch in model.towers]
    assert (means[0] - means[1]).abs().max() > 1
    assert model.towers[1][1].weight is model.towers[0][1].weight


def test_state_dicts():
    shared, private = Siamese(tower()), Siamese(tower(), statistics="private")
    assert set(shared.state_dict()) == {f"towers.0.{name}" for name in tower().state_dict()}
    more = {f"towers.1.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name for name, _ in private.named_buffers()} - {name for name, _ in shared.named_buffers()} == more
    assert set(private.state_dict()) == {f"towers.{tower_}.{name}" for tower_ in "01" for name in tower().state_dict()}
    assert sum(p.numel() for p in shared.parameters()) == sum(p.numel() for p in private.parameters())


@pytest.mark.parametrize("statistics", ["shared", "private"])
def test_branches_options_and_tuples(statistics):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x, *, scale=1.0):
            return self.weight.detach() * x * scale, x

    model = Siamese(Scaled(), branches=3, statistics=statistics)
    outputs = model(torch.ones(3), torch.zeros(3), 2 * torch.ones(3), scale=5.0)
    assert [y.sum().item() for y, _ in outputs] == [15, 0, 30]


def test_a_tower_with_ties_and_with_plain_sharing_of_its_own():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head, self.other = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.head.weight = self.embed.weight
            tied.tie(self, "other.weight", "embed.weight.T")
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.other(self.head(self.embed(x))))

    plain = Tower()
    model = Siamese(plain, statistics="private")
    assert sum(p.numel() for p in model.parameters()) == 9 + 3 * 3 + 6
    x = torch.randn(5, 3)
    one, other = model(x, x)
    assert torch.equal(one, other)
    with torch.no_grad():
        plain.embed.weight.zero_()
    assert not any(getattr(model.towers[1], name).weight.any() for name in ("embed", "head", "other"))


def test_a_tower_with_a_computed_weight():
    plain = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3))
    model = Siamese(plain, statistics="private")
    with torch.no_grad():
        plain[0].parametrizations.weight.original0.mul_(2)
    assert torch.equal(model.towers[1][0].weight, plain[0].weight)


def test_a_twin_has_no_memory_for_parameters():
    plain = tower()
    copied = twin(plain)
    assert all(one is other for one, other in zip(copied.parameters(), plain.parameters(), strict=True))
    assert all(one is not other for one, other in zip(copied.buffers(), plain.buffers(), strict=True))
    assert all(one is not other for one, other in zip(copied.modules(), plain.modules(), strict=True))


def test_repr():
    assert repr(Siamese(nn.Identity(), 3)).splitlines()[1].strip() == "branches=3, statistics='shared'"


COUNT = """\
Siamese.forward(...)
  There is not one input for each branch.
  found:    3 inputs
  expected: 2
  fix:      Siamese(tower, branches=3); options of the tower are passed by name
The model was not changed."""

KIND = """\
Siamese(list, 2, statistics='shared')
  The tower is not a module.
  found:    list
  expected: an nn.Module that maps one input to one output
  fix:      Siamese(nn.Sequential(...)): one tower, not a list of them
The model was not changed."""

BRANCHES = """\
Siamese(Identity, 0, statistics='shared')
  The number of branches is not one.
  found:    branches=0
  expected: a positive whole number
  fix:      branches=2
The model was not changed."""

WORD = """\
Siamese(Identity, 2, statistics='own')
  The branches' statistics are either shared or private.
  found:    statistics='own'
  expected: 'shared' or 'private'
  fix:      statistics='private'
The model was not changed."""


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Siamese(nn.Identity())(1, 2, 3), tied.ShapeError, COUNT),
        (lambda: Siamese(nn.Identity())(1), tied.ShapeError, COUNT.replace("3", "1")),
        (lambda: Siamese([nn.Identity()]), tied.KindError, KIND),
        (lambda: Siamese(nn.Identity(), 0), tied.ShapeError, BRANCHES),
        (lambda: Siamese(nn.Identity(), statistics="own"), tied.KindError, WORD),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_branches_are_whole_numbers():
    with pytest.raises(tied.ShapeError):
        Siamese(nn.Identity(), True)
