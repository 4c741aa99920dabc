"""Folding: modules that correspond name by name are one group, and nothing is lost of what the groups say."""

import itertools
import random
import sys

import pytest

from tied.reporting.facts import Group
from tied.reporting.fold import fold


def group(*names: str, state: str = "tied", transforms: tuple[str, ...] | None = None, size: int = 4) -> Group:
    return Group(state, names, transforms or ("identity",) * len(names), (2, 3), "int8", size)


def shown(groups: tuple[Group, ...]) -> list[tuple[tuple[str, ...], int]]:
    return [(each.names, len(each.parts)) for each in groups]


def named(*modules: str, names: str = "abc") -> list[str]:
    return [f"{module}.{name}" for module in modules for name in names]


def test_a_pair_and_a_triple():
    groups = [group(f"net.{n}", f"best.{n}") for n in "abc"] + [group(f"x.{n}", f"y.{n}", f"z.{n}") for n in "ab"]
    names = named("net", "best") + named("x", "y", "z", names="ab")
    assert shown(fold(groups, names)) == [(("net", "best"), 3), (("x", "y", "z"), 2)]


@pytest.mark.parametrize("extra", ["net.d", "best.d", "net.in.d", "best.in.d"])
def test_what_has_more_of_its_own_is_not_folded(extra):
    groups = tuple(group(f"net.{n}", f"best.{n}") for n in "abc")
    assert fold(groups, [*named("net", "best"), extra]) == groups


def test_other_names_of_equal_number_are_not_folded():
    groups = (group("net.a", "best.a"), group("net.b", "best.b"))
    assert fold(groups, named("net", names="abc") + named("best", names="abd")) == groups


def test_what_is_shared_inside_stays_a_group():
    groups = [
        group("net.embed.w", "net.head.w", "best.embed.w", "best.head.w", size=9),
        group("net.norm.w", "best.norm.w"),
    ]
    names = [f"{module}.{part}.w" for module in ("net", "best") for part in ("embed", "head", "norm")]
    whole, inside = fold(groups, names)
    assert (whole.names, whole.bytes) == (("net", "best"), 13)
    assert [part.names for part in whole.parts] == [(f"net.{n}.w", f"best.{n}.w") for n in ("embed", "head", "norm")]
    assert inside.names == ("net.embed.w", "net.head.w")


def test_what_is_turned_inside_corresponds():
    names = ("net.enc.w", "net.dec.w", "best.enc.w", "best.dec.w")
    groups = [group(*names, transforms=("identity", ".T", "identity", ".T")), group("net.b", "best.b")]
    whole, inside = fold(groups, [*names, "net.b", "best.b"])
    assert [(part.names[0], part.shape) for part in whole.parts] == [
        ("net.enc.w", (2, 3)),
        ("net.dec.w", (3, 2)),
        ("net.b", (2, 3)),
    ]
    assert inside.transforms == ("identity", ".T")
    crossed = [group(*names, transforms=("identity", ".T", ".T", "identity")), group("net.b", "best.b")]
    assert fold(crossed, [*names, "net.b", "best.b"]) == tuple(crossed)


def test_what_is_left_folds_again():
    layers = [f"{module}.layers.{n}" for module in ("net", "best") for n in range(3)]
    groups = [group(*(f"{layer}.{n}" for layer in layers)) for n in "abc"] + [group("net.d", "best.d")]
    names = [*named(*layers), "net.d", "best.d"]
    assert shown(fold(groups, names)) == [
        (("net", "best"), 10),
        (("net.layers.0", "net.layers.1", "net.layers.2"), 3),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost(seed):
    """Which names are one is the same before and after, parts included."""
    draw = random.Random(seed)
    names = [f"{m}.{i}.{n}" for m in ("net", "best", "last") for i in range(2) for n in "ab"]
    inner = {rest: draw.choice([rest, rest[-1], rest]) for rest in ("0.a", "0.b", "1.a", "1.b")}
    labels = {name: inner[name.partition(".")[2]] for name in names}
    labels |= dict.fromkeys(draw.sample(names, seed % 3), "odd")
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(labels[name], []).append(name)
    groups = [group(*several) for several in found.values() if len(several) > 1]
    folded = fold(groups, names)
    assert seed % 3 or any(each.parts for each in folded)
    leaves = list(itertools.chain.from_iterable(each.parts or (each,) for each in folded))
    joined = {name: {name} for name in names}
    for leaf in leaves:
        one = set().union(*(joined[name] for name in leaf.names))
        joined.update(dict.fromkeys(one, one))
    for whole in folded:  # what is one inside the first module of a whole, is so in the others
        for other in whole.names[1:] if whole.parts else ():
            for part in whole.parts:
                assert part.names[whole.names.index(other)].startswith(f"{other}.")
    assert {frozenset(one) for one in joined.values() if len(one) > 1} == {frozenset(g.names) for g in groups}


def test_folding_is_linear_where_one_tensor_is_everywhere():
    """Pairs of modules with a scale that all of them have: each pair takes its names out of one large group."""

    def calls(count: int) -> int:
        groups = [group(f"x{i}.w", f"y{i}.w") for i in range(count)]
        groups.append(group(*(f"{m}{i}.scale" for i in range(count) for m in "xy")))
        names = [f"{m}{i}.{n}" for i in range(count) for m in "xy" for n in ("w", "scale")]
        made = 0

        def one(frame: object, event: str, arg: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(one)
        try:
            folded = fold(groups, names)
        finally:
            sys.setprofile(None)
        assert len(folded) == count + 1
        return made

    assert calls(1000) <= 11 * calls(100)


def test_nothing_is_taken_out_of_what_is_to_stay_entire():
    large = group("net.a", "net.b", "best.a", "best.b", state="equal")
    names = named("net", "best")
    assert len(fold([large, group("net.c", "best.c", state="equal")], names)) == 2
    groups = (large, group("net.c", "best.c", state="equal"))
    assert fold(groups, names, entire={large.names}) == groups
