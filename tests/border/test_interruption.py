"""One commit point: an exception at any line of a call leaves the model as it was, or as the call leaves it.

A tracer raises KeyboardInterrupt at one line of `tied`, or of torch below it, per run: at a line in every state that
the model passes through, and, in the slow run, at many more.
"""

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from interrupts import description, identities, interrupted, lines_of, trained
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import orthogonal
from transformers import LlamaConfig, LlamaForCausalLM

import tied
from tied.binding import bind, link
from tied.binding.commit.readers import let_readers_pass
from tied.binding.followers import adapters, optimizers
from tied.binding.live import registration


class Net(nn.Module):
    """An autoencoder, two towers and a recurrent layer, all of which the forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        self.other = nn.Linear(4, 3)
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))
        self.gru = nn.GRU(4, 4, bidirectional=True)
        self.spare = nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.randint(-1, 5, (4, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.decoder(torch.tanh(self.encoder(x) + self.other(x)))
        for tower in self.towers:
            y = tower(y)
        return self.gru(y)[0] + self.spare.sum()


INPUTS = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)


def nothing(model: Any) -> None:
    """Leave the model as it is built."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no links of other models live, which a load would look at, line by line."""
    living = WeakSet[Any]()
    for module in (adapters, link, registration):
        monkeypatch.setattr(module, "LIVING", living)


@dataclass(frozen=True)
class Call:
    """A call on a model that was prepared for it."""

    name: str
    act: Callable[[Any], object]
    prepare: Callable[[Any], object] = nothing
    build: Callable[[], nn.Module] = Net
    inputs: Tensor = INPUTS

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """Return the prepared model, the same one at each call."""
        adapters.LIVING.clear()
        optimizers._NEWS.clear()
        torch.manual_seed(0)
        model = self.build().double()
        self.prepare(model)
        return model.eval()

    def outcome(self, model: nn.Module) -> object:
        """Return what comes of one more call: nothing, or the kind of the error."""
        try:
            self.act(model)
        except tied.TieError as error:
            return type(error)
        return None


def tying(*equations: tuple[str, str], keep: Any = "source") -> Callable[[Any], object]:
    return lambda model: tied.tie(model, dict(equations), keep=keep)


TRANSPOSED = ("decoder.weight", "encoder.weight.T")
IDENTITY = ("other.weight", "encoder.weight")
TOWER = ("towers.1", "towers.0")
FLIPPED = ("gru.weight_hh_l0_reverse", "gru.weight_hh_l0.flip(0)")


def by_assignment(model: Any) -> None:
    with tied.tying(model) as m:
        m.decoder.weight = m.encoder.weight.T
        m.other.weight = m.encoder.weight


def replace_target(model: Any) -> None:
    tying(TRANSPOSED, IDENTITY)(model)
    model.decoder, model.other = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()


def overwrite(model: Any) -> None:
    tying(TRANSPOSED, ("towers.1.0.weight", "2 * towers.0.0.weight"))(model)
    model.decoder._parameters["weight"] = nn.Parameter(torch.ones(4, 3).double())
    model.towers[1][0].__class__ = nn.Linear


def overwrite_computed(model: Any) -> None:
    tied.tie(model, "towers.1.0.weight", "2 * towers.0.0.weight")
    orthogonal(model.towers[0][0])
    model.towers[1][0]._parameters["weight"] = nn.Parameter(2 * torch.eye(4).double())


def share(model: Any) -> None:
    model.other.weight = model.encoder.weight
    model.towers[1][0].weight = model.towers[0][0].weight
    model.towers[1][0].bias = model.towers[0][0].bias


def half_tie(model: Any) -> None:
    model.decoder.weight = nn.Parameter(model.encoder.weight.data.t())
    model.towers[2][0].weight.data.copy_(model.towers[0][0].weight.data)


TIES = [
    Call("tie an identity", tying(IDENTITY)),
    Call("tie a transposed weight", tying(TRANSPOSED)),
    Call("tie a scaled weight", tying(("other.weight", "2 * encoder.weight"))),
    Call("tie a gathered weight", tying(("decoder.weight", "spare[index]"))),
    Call("tie to two sources", tying(("decoder.weight", "cat([encoder.weight.T[:2], other.weight.T[2:]], 0)"))),
    Call("tie several", tying(TRANSPOSED, IDENTITY, ("towers.1.0.weight", "towers.0.0.weight.T"))),
    Call("tie a module", lambda model: tied.tie(model, *TOWER, buffers=True)),
    Call("tie a recurrent weight", tying(("gru.weight_hh_l0_reverse", "gru.weight_hh_l0"))),
    Call("tie a recurrent weight, flipped", tying(FLIPPED)),
    Call("tie, keep the target", tying(TRANSPOSED, keep="target")),
    Call("tie, keep the mean", tying(TRANSPOSED, IDENTITY, keep="mean")),
    Call("tie a source of a target", tying(("encoder.weight", "decoder.weight.T")), tying(IDENTITY)),
    Call("tie a source of a transposed target", tying(("encoder.weight", "other.weight")), tying(TRANSPOSED)),
    Call("tie by assignment", by_assignment),
    Call("tie layers", lambda model: tied.tie_layers(model, "towers", private=["*.1.*"])),
    Call("bind", lambda model: bind(model.decoder, "weight", "e.weight.T", {"e": model.encoder})),
    Call("adopt", tied.adopt, share),
    Call("adopt half-tied and equal", lambda model: tied.adopt(model, half_tied=True, equal=True), half_tie),
]
BACK = [
    Call("untie an identity", lambda model: tied.untie(model, "other.weight"), tying(IDENTITY, TRANSPOSED)),
    Call("untie a transposed weight", lambda model: tied.untie(model, "decoder.weight"), tying(IDENTITY, TRANSPOSED)),
    Call("untie a module", lambda model: tied.untie(model, "towers.1"), lambda m: tied.tie(m, *TOWER, buffers=True)),
    Call("untie all", tied.untie, tying(IDENTITY, TRANSPOSED, FLIPPED)),
    Call("alias", tied.alias, tying(IDENTITY, TOWER)),
    Call("retie what was replaced", lambda model: tied.retie(model, keep="source"), replace_target),
    Call("retie what was replaced, keep it", lambda model: tied.retie(model, keep="target"), replace_target),
    Call("retie what was overwritten", lambda model: tied.retie(model, keep="source"), overwrite),
    Call("retie what was overwritten, keep it", lambda model: tied.retie(model, keep="target"), overwrite),
    Call("retie, keep what a source computes", lambda model: tied.retie(model, keep="target"), overwrite_computed),
]


def stepped(*equations: tuple[str, str]) -> Callable[[Any], None]:
    """Return what ties a model, and takes a step with an optimizer that stands in its attribute."""

    def prepare(model: Any) -> None:
        if equations:
            tying(*equations)(model)
        model.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        model(INPUTS).square().sum().backward()
        model.optimizer.step()
        model.optimizer.zero_grad()

    return prepare


def with_optimizer(act: Callable[..., object], *arguments: Any, **options: Any) -> Callable[[Any], object]:
    return lambda model: act(model, *arguments, optimizer=model.optimizer, **options)


OPTIMIZED = [
    Call("tie with an optimizer", with_optimizer(tied.tie, dict([IDENTITY, TRANSPOSED])), stepped()),
    Call("tie with an optimizer, keep the target", with_optimizer(tied.tie, *TRANSPOSED, keep="target"), stepped()),
    Call("untie with an optimizer", with_optimizer(tied.untie), stepped(IDENTITY, TRANSPOSED)),
]


class Llama(nn.Module):
    """A model of transformers that shares embedding and head, and returns its logits."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 8}
        config = LlamaConfig(**sizes, num_attention_heads=2, num_hidden_layers=1, tie_word_embeddings=True)
        self.model = LlamaForCausalLM(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens).logits


TOKENS = torch.tensor([[1, 5, 3, 9], [4, 4, 10, 0]])
OF_TRANSFORMERS = [
    Call("adopt a model of transformers", tied.adopt, build=Llama, inputs=TOKENS),
    Call("untie a model of transformers", tied.untie, tied.adopt, build=Llama, inputs=TOKENS),
]
CALLS = [*TIES, *BACK, *OPTIMIZED, *OF_TRANSFORMERS]


def chosen(call: Call) -> list[int]:
    """Return a line for every state that the model passes through, and some that see none change."""
    model = call.model()
    count, changing = lines_of(lambda: call.act(model), model)
    assert changing, "the call changes nothing, or the tracer does not see it"
    return sorted({*changing, *range(0, count, count // 12), count - 1})


def many(call: Call) -> range:
    """Return one line in seven, from the first change of the model to the last; all of them take ten minutes."""
    model = call.model()
    count, changing = lines_of(lambda: call.act(model), model)
    return range(changing[0] - 1, min(changing[-1] + 2, count), 7)


def check_lines(call: Call, lines: Callable[[Call], Iterable[int]]) -> None:
    """Interrupt a call at each of the lines: the model is as before or done, and another call completes it."""
    reference = call.model()
    fresh = description(reference, call.inputs)
    call.act(reference)  # which also fills the caches, so that each run from now on takes the same lines
    done = description(reference, call.inputs)
    again, twice = call.outcome(reference), description(reference, call.inputs)
    final = trained(reference, call.inputs)
    assert fresh != done
    assert twice == done
    for number in lines(call):
        model = call.model()
        before = identities(model)
        assert interrupted(lambda: call.act(model), at=number), number  # noqa: B023
        found = description(model, call.inputs)
        if found == fresh:
            assert identities(model) == before, number
            assert call.outcome(model) is None, number
        else:
            assert found == done, number
            assert call.outcome(model) == again, number
        assert description(model, call.inputs) == done, number
        assert trained(model, call.inputs) == final, number


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_is_done_or_leaves_the_model_as_it_was(call: Call) -> None:
    check_lines(call, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_so_it_is_wherever_it_is_interrupted(call: Call) -> None:
    check_lines(call, many)


# -- meanwhile: nothing is ever without its weight ------------------------------------------------------


def weights(model: nn.Module, places: Iterable[tuple[str, str]]) -> list[object]:
    held = [getattr(model.get_submodule(path), name) for path, name in places]
    return [None if tensor is None else tensor.tolist() for tensor in held]


READABLE = [call for call in CALLS if "retie" not in str(call)]  # elsewhere, a weight is gone or passes through another


@pytest.mark.parametrize("call", READABLE, ids=str)
def test_at_any_moment_each_weight_is_the_old_one_or_the_new(call: Call) -> None:
    model, done = call.model(), call.model()
    call.act(done)
    places = [(path, name) for path, module in done.named_modules() for name in named(module)]
    old, new, seen = weights(model, places), weights(done, places), list[list[object]]()
    lines_of(lambda: call.act(model), model, lambda: seen.append(weights(model, places)))
    assert len(seen) > 3
    for moment in seen:
        assert all(now in pair for now, *pair in zip(moment, old, new, strict=True))


def named(module: nn.Module) -> list[str]:
    """Return the names of what a module holds and reads."""
    return [*module._parameters, *module._buffers, *(name for name in vars(module).get("_tied", {}))]


# -- loading: torch stops half way, and so do we; ties hold, and the next load completes it --------------


def load(model: Any, **options: Any) -> object:
    """Load what is nowhere in the model yet."""
    return tied.load_state_dict(model, other_values(model), **options)


def other_values(model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of which no value is the model's."""
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


LOADS = [
    Call("load by torch", lambda model: model.load_state_dict(other_values(model)), tying(IDENTITY, TRANSPOSED)),
    Call("load", load, tying(IDENTITY, TRANSPOSED, FLIPPED)),
    Call("load and assign", lambda model: load(model, assign=True), tying(IDENTITY, TRANSPOSED, FLIPPED)),
    Call("load into plain sharing", load, share),
    Call("load into plain sharing, and assign", lambda model: load(model, assign=True), share),
]


def sharing(model: nn.Module) -> object:
    """Return what is shared, and declared, and what must be true of a tied or shared weight at any time."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    transposed = [tie for tie in tied.ties(model) if str(tie) == "decoder.weight = encoder.weight.T"]
    assert not transposed or torch.equal(model.decoder.weight, model.encoder.weight.T)
    return (
        tied.ties(model),
        list(names.values()),
        list(model.state_dict()),
        [type(module) for module in model.modules()],
    )


def values(model: nn.Module) -> dict[str, object]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("call", LOADS, ids=str)
def test_a_load_stops_as_torch_does(call: Call) -> None:
    done = call.model()
    old = values(done)
    call.act(done)  # which also fills the caches
    shared, new = sharing(done), values(done)
    assert all(old[name] != new[name] for name in old)
    found = set[tuple[bool, ...]]()
    for number in chosen(call)[::5]:
        model = call.model()
        state = other_values(model)
        assert interrupted(lambda: call.act(model), at=number), number  # noqa: B023
        assert sharing(model) == shared, number
        now = values(model)
        assert all(now[name] in (old[name], new[name]) for name in now), number
        found.add(tuple(now[name] == new[name] for name in now))
        tied.load_state_dict(model, state)
        assert (sharing(model), values(model)) == (shared, new), number
    assert len(found) > 5, "of the states that torch passes through"


@pytest.mark.parametrize("prepare", [tying(IDENTITY, TRANSPOSED, FLIPPED), share], ids=["ties", "plain sharing"])
@pytest.mark.parametrize("assign", [True, False])
def test_a_file_that_is_assigned_is_loaded_or_not(
    tmp_path: Path, assign: bool, prepare: Callable[[Any], object]
) -> None:
    """What is copied in place stops half way as in torch; sharing holds, and the next load completes it."""
    path = tmp_path / "model.safetensors"
    call = Call("load a file", lambda model: tied.load(model, path, assign=assign), prepare)
    done = call.model()
    with torch.no_grad():
        for tensor in (*done.parameters(), *done.buffers()):
            tensor += 1
    tied.save(done, path)
    call.act(done)
    shared, new, old = sharing(done), values(done), values(call.model())
    for number in chosen(call)[::5]:
        model = call.model()
        before = identities(model)
        assert interrupted(lambda: call.act(model), at=number), number  # noqa: B023
        now = values(model)
        assert sharing(model) == shared, number
        assert all(now[name] in (old[name], new[name]) for name in now), number
        if assign:
            assert now == new or (now, identities(model)) == (old, before), number
        call.act(model)
        assert (sharing(model), values(model)) == (shared, new), number


# -- copies: they leave the original alone ------------------------------------------------------------


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, pickle.dumps], ids=lambda make: make.__name__)
def test_a_copy_leaves_its_original_alone(make: Callable[[Any], object]) -> None:
    call = Call("copy", make, tying(IDENTITY, TRANSPOSED, FLIPPED, ("towers.1.0.weight", "2 * towers.0.0.weight")))
    model = call.model()
    make(model)
    before, was = identities(model), description(model, INPUTS)
    count, changing = lines_of(lambda: make(model), model)
    assert count > 3
    assert not changing
    for number in range(0, count, max(count // 60, 1)):
        assert interrupted(lambda: make(model), at=number)
        assert identities(model) == before, number
    assert description(model, INPUTS) == was


# -- other threads: each sees the old weight or the new one --------------------------------------------


class Readers:
    """Threads that read a target in every way, as long as they are inside the block."""

    def __init__(self, model: Any, name: str, allowed: list[Tensor]) -> None:
        self.model, self.name, self.allowed = model, name, allowed
        self.outputs = [functional_call(copy.deepcopy(model), {name: value}, (INPUTS,)) for value in allowed]
        self.wrong, self.reads, self.is_over = list[str](), 0, False

    def __enter__(self) -> "Readers":
        self.threads = [threading.Thread(target=self.read) for _ in range(8)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        for thread in self.threads:
            thread.join()

    def read(self) -> None:
        path, _, attribute = self.name.rpartition(".")
        try:
            while not self.is_over:
                self.expect(getattr(self.model.get_submodule(path), attribute), self.allowed)
                self.expect(self.model(INPUTS), self.outputs)
                held = self.model.state_dict()
                self.expect(held.get(self.name, self.allowed[0]), self.allowed)
                self.reads += 1
        except BaseException as error:
            self.wrong.append(repr(error))

    def expect(self, value: Tensor, allowed: list[Tensor]) -> None:
        if not any(torch.allclose(value, one, rtol=1e-12, atol=1e-12) for one in allowed):
            self.wrong.append("another value")


@pytest.fixture
def often() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("target", "sources"),
    [
        ("other.weight", ["encoder.weight", "towers.0.0.weight[:3]"]),
        ("decoder.weight", ["encoder.weight.T", "2 * other.weight.T"]),
        ("gru.weight_hh_l0_reverse", ["gru.weight_hh_l0", "gru.weight_hh_l0.flip(0)"]),
    ],
)
def test_threads_read_the_old_value_or_the_new(target: str, sources: list[str]) -> None:
    torch.manual_seed(0)
    model = Net().double().eval()
    allowed = [model.get_parameter(target).detach().clone()]
    for source in sources:
        tied.tie(model, target, source)
        tied.untie(model)
        allowed.append(model.get_parameter(target).detach().clone())
    with torch.no_grad(), Readers(model, target, allowed) as readers:
        for source in sources * 40:
            tied.tie(model, target, source)
            tied.untie(model, target)
    assert not readers.wrong, readers.wrong
    assert readers.reads > 8


class Gate(dict[str, Any]):
    """Entries that whoever asks `nn.Module.__getattr__` for a lock finds when that lock is open."""

    __contains__ = methodcaller("acquire")
    __getitem__ = methodcaller("release")


def test_a_thread_that_looks_for_an_entry_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked on the class before that read late: the entry must be there until it has looked here too."""
    module, gate, rounds = nn.Linear(2, 2), threading.Lock(), list[float]()
    module.__dict__["_parameters"] = Gate()
    gate.acquire()
    reader = threading.Thread(target=nn.Module.__getattr__, args=(module, gate))
    reader.start()
    while sys._current_frames()[reader.ident or 0].f_code is not nn.Module.__getattr__.__code__:
        pass

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 3:
            gate.release()
            reader.join()

    monkeypatch.setattr("time.sleep", sleep)
    let_readers_pass()
    assert len(rounds) == 3
