"""Every law of a layer, over every layer of `layers_under_law.py`.

A law is a function of a `Layer`; its docstring is its line in the table. `test_the_table` pins which cells
there are, and the reason where there is none, in `tests/golden/layers-under-law.txt`.
"""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from layers_under_law import LAYERS, Layer
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.utils._pytree import tree_leaves, tree_map

import tied

EXACT, SINGLE = 1e-12, 1e-4


def close(found, expected, bound: float = EXACT) -> None:
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


def loss(output) -> Tensor:
    """Return a number that depends on every output."""
    return sum(leaf.square().mean() + leaf.sin().mean() for leaf in tree_leaves(output))


class Reference:
    """The layer by hand, from leaves with the values that a model has now."""

    def __init__(self, layer: Layer, model: nn.Module) -> None:
        self.layer = layer
        learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.tensors = {n: v.requires_grad_() if learned.get(n) else v for n, v in values.items()}

    def parameters(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def __call__(self, *inputs: Tensor):
        return self.layer.by_hand(self.tensors, *inputs)


def train(subject, layer: Layer, steps: int, dtype: torch.dtype) -> None:
    """Take steps of AdamW with decay and clipping, each on another batch."""
    learned = [parameter for parameter in subject.parameters() if parameter.requires_grad]
    optimizer = AdamW(learned, lr=0.02, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss(subject(*layer.arguments(step, dtype))).backward()
        clip_grad_norm_(learned, 0.5)
        optimizer.step()


def assert_lawful(model: nn.Module, layer: Layer, steps: int = 3) -> None:
    """Check that the model computes what is written by hand, now and after steps of training; and counts once."""
    assert sum(parameter.numel() for parameter in model.parameters()) == layer.count
    dtype = next(model.parameters()).dtype
    bound = EXACT if dtype == torch.float64 else SINGLE
    reference = Reference(layer, model)
    close(model(*layer.arguments(7, dtype)), reference(*layer.arguments(7, dtype)), bound)
    for subject in (model, reference):
        train(subject, layer, steps, dtype)
    for name, parameter in model.named_parameters():
        close(parameter, reference.tensors[name], bound)


# -- the laws ---------------------------------------------------------------------------------------


def forward(layer: Layer) -> None:
    """The output is that of plain torch, and each shared number is one parameter."""
    assert_lawful(layer.model(), layer, steps=0)


def gradient(layer: Layer) -> None:
    """Gradients by parameters and inputs are those of plain torch."""
    model, inputs = layer.model(), layer.arguments()
    reference = Reference(layer, model)
    ours, theirs = (tuple(x.requires_grad_() if x.is_floating_point() else x for x in layer.arguments()) for _ in "ab")
    loss(model(*ours)).backward()
    loss(reference(*theirs)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (reference.tensors[name].grad is not None)
        if parameter.requires_grad:
            close(parameter.grad, reference.tensors[name].grad)
    for x, one, other in zip(inputs, ours, theirs, strict=True):
        if x.is_floating_point():
            close(one.grad, other.grad)


def twenty_steps(layer: Layer) -> None:
    """After 20 steps of AdamW the weights are those of plain torch."""
    assert_lawful(layer.model(), layer, steps=20)


def differences(layer: Layer) -> None:
    """Gradients equal finite differences (gradcheck)."""
    model, inputs = layer.model(), layer.arguments()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    free = [x.requires_grad_(layer.differentiable) if x.is_floating_point() else x for x in inputs]

    def compute(*tensors):
        values = dict(zip(names, tensors[len(free) :], strict=True))
        return tuple(tree_leaves(functional_call(model, values, tensors[: len(free)])))

    assert gradcheck(compute, (*free, *parameters), fast_mode=True)


def deepcopy(layer: Layer) -> None:
    """A copy is lawful and trains by itself."""
    model = layer.model()
    before = copy.deepcopy(model.state_dict())
    assert_lawful(copy.deepcopy(model), layer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def pickled(layer: Layer) -> None:
    """It comes back from pickle and from torch.save."""
    assert_lawful(pickle.loads(pickle.dumps(layer.model())), layer)
    stream = io.BytesIO()
    torch.save(layer.model(), stream)
    stream.seek(0)
    assert_lawful(torch.load(stream, weights_only=False), layer)


def loaded(layer: Layer) -> None:
    """A state dict goes in, strictly, by copy and by assign; the tie holds after either."""
    for assign in (False, True):
        source, model = layer.model(seed=3), layer.model()
        state = {name: value.clone() for name, value in source.state_dict().items()}
        assert list(model.load_state_dict(state, strict=True, assign=assign)) == [[], []]
        close(model(*layer.arguments()), source(*layer.arguments()))
        assert_lawful(model, layer)


def converted(layer: Layer) -> None:
    """It follows a change of dtype: lawful in float32, and it runs in bfloat16."""
    model = layer.model()
    assert_lawful(copy.deepcopy(model).float(), layer)
    output = model.bfloat16()(*layer.arguments(dtype=torch.bfloat16))
    assert all(leaf.dtype == torch.bfloat16 and leaf.isfinite().all() for leaf in tree_leaves(output))


def materialized(layer: Layer) -> None:
    """Made on the meta device and given memory, then loaded, it is lawful; on meta it gives shapes."""
    state = layer.model().state_dict()
    shapes = [leaf.shape for leaf in tree_leaves(layer.model()(*layer.arguments()))]
    with torch.device("meta"):
        model = layer.build().double().eval()
    found = model(*(x.to("meta") for x in layer.arguments()))
    assert [leaf.shape for leaf in tree_leaves(found)] == shapes
    model.to_empty(device="cpu").load_state_dict(state)
    assert_lawful(model, layer)


def compiled(layer: Layer) -> None:
    """torch.compile(fullgraph=True) gives the same output and gradients."""
    model, plain = layer.model(), layer.model()
    torch._dynamo.reset()
    program = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = layer.arguments()
    close(program(*inputs), plain(*inputs))
    for subject in (program, plain):
        loss(subject(*inputs)).backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            close(parameter.grad, other.grad)


def exported(layer: Layer) -> None:
    """torch.export gives a program with the same output."""
    model, inputs = layer.model(), layer.arguments()
    program = torch.export.export(model, inputs)
    close(program.module()(*inputs), model(*inputs))


def mapped(layer: Layer) -> None:
    """vmap over examples, and over an ensemble of models, gives what loops give."""
    model, inputs = layer.model(), layer.arguments()
    batches = tuple(torch.stack([x, x.roll(1, layer.batch)]) for x in inputs)
    each = [model(*(batch[number] for batch in batches)) for number in range(2)]
    close(vmap(model)(*batches), tree_map(lambda *leaves: torch.stack(leaves), *each))
    models = [layer.model(seed) for seed in range(2)]
    parameters, buffers = stack_module_state(models)
    shell = layer.model()
    found = vmap(lambda p, b: functional_call(shell, (p, b), inputs))(parameters, buffers)
    close(found, tree_map(lambda *leaves: torch.stack(leaves), *(model(*inputs) for model in models)))


def autocast(layer: Layer) -> None:
    """Under autocast to bfloat16 it runs, near the exact output, and every parameter gets a gradient."""
    model, inputs = layer.model().float(), layer.arguments(dtype=torch.float32)
    exact = tree_leaves(model(*inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*inputs)
        loss(output).backward()
    for leaf, wanted in zip(tree_leaves(output), exact, strict=True):
        assert (leaf.float() - wanted).norm() <= 0.05 * wanted.norm()
    for parameter in model.parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all()


def half(layer: Layer) -> None:
    """In bfloat16 and float16, output and gradients are within 8 eps of those in float64."""
    for dtype in (torch.bfloat16, torch.float16):
        model, inputs = layer.model().to(dtype), layer.arguments(dtype=dtype)
        reference = Reference(layer, copy.deepcopy(model).double())
        exact = tree_leaves(reference(*(x.double() if x.is_floating_point() else x for x in inputs)))
        found = tree_leaves(model(*inputs))
        toward = [torch.randn(leaf.shape).to(dtype) for leaf in exact]
        torch.autograd.backward(found, toward)
        torch.autograd.backward(exact, [each.double() for each in toward])
        learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        wanted = [reference.tensors[name].grad for name in learned]
        floor = 0.05 * max(grad.norm() for grad in wanted)  # a gradient may be zero, but for rounding
        pairs = [*zip(found, exact, strict=True), *zip((p.grad for p in learned.values()), wanted, strict=True)]
        for one, other in pairs:
            assert one.dtype == dtype
            assert (one.double() - other).norm() <= 8 * torch.finfo(dtype).eps * max(other.norm(), floor)


def empty(layer: Layer) -> None:
    """A batch of no examples gives an output of no examples."""
    model, inputs = layer.model(), layer.arguments()
    output, none = model(*inputs), model(*(x.narrow(layer.batch, 0, 0) for x in inputs))
    assert sum(leaf.numel() for leaf in tree_leaves(none)) == 0
    assert len(tree_leaves(none)) == len(tree_leaves(output))


def untied(layer: Layer) -> None:
    """tied.untie changes no output, and leaves nothing tied."""
    model, inputs = layer.model(), layer.arguments()
    before = model(*inputs)
    tied.untie(model)
    close(model(*inputs), before)
    assert tied.ties(model) == ()


def own(layer: Layer) -> None:
    """The law of this kind of layer."""
    assert layer.own is not None
    layer.own[1](layer.model())


LAWS: dict[str, Callable[[Layer], None]] = {
    "forward": forward,
    "gradient": gradient,
    "20 steps": twenty_steps,
    "gradcheck": differences,
    "deepcopy": deepcopy,
    "pickle": pickled,
    "load": loaded,
    "dtype": converted,
    "meta": materialized,
    "compile": compiled,
    "export": exported,
    "vmap": mapped,
    "autocast": autocast,
    "half": half,
    "empty": empty,
    "untie": untied,
    "own": own,
}


def mark(layer: Layer, law: str, reasons: list[str]) -> str:
    if law in layer.aside:
        return str(1 + reasons.index(layer.aside[law]))
    return "x" if applies(layer, law) else "-"


def applies(layer: Layer, law: str) -> bool:
    return law not in layer.aside and (law != "own" or layer.own is not None)


def table() -> str:
    """Print which law holds for which layer: `x`, or the number of the reason why it does not apply."""
    reasons = list(dict.fromkeys(reason for layer in LAYERS for reason in layer.aside.values()))
    width = max(len(str(layer)) for layer in LAYERS)
    lines = ["  ".join([" " * width, *LAWS])]
    for layer in LAYERS:
        marks = (mark(layer, law, reasons).center(len(law)) for law in LAWS)
        lines.append("  ".join([f"{layer!s:{width}}", *marks]).rstrip())
    lines += ["", *(f"{number}: {reason}" for number, reason in enumerate(reasons, start=1)), "", "own:"]
    lines += [f"{layer!s:{width}}  {layer.own[0]}" for layer in LAYERS if layer.own]
    lines += ["", *(f"{name}: {(law.__doc__ or '').splitlines()[0]}" for name, law in LAWS.items())]
    return "\n".join(lines) + "\n"


def test_the_table(golden):
    golden("layers-under-law.txt", table())


CELLS = [pytest.param(layer, law, id=f"{layer}-{law}") for layer in LAYERS for law in LAWS if applies(layer, law)]


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "law"), CELLS)
def test_law(layer: Layer, law: str):
    LAWS[law](layer)
