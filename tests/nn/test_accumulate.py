"""Gathered gradients are those of plain autograd, whatever is asked of the graph, in whichever order."""

import copy
import gc
import itertools
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tied
from tied.nn import Looped, Unrolled, accumulate, many_uses, shared_linear
from tied.nn.accumulate import Sum, gathered_linear

WIDTH = 6


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make gathering pay for the small weights of these tests."""
    monkeypatch.setattr(accumulate, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(accumulate, "ROWS_PER_WIDTH", 1e9)


@pytest.fixture
def counts(monkeypatch):
    """Count what goes into sums, and the products that come of it."""
    found = {"uses": 0, "products": 0}

    def counting(name, key):
        plain = getattr(Sum, name)

        def counted(self, *arguments):
            found[key] += 1
            return plain(self, *arguments)

        monkeypatch.setattr(Sum, name, counted)

    counting("add_product", "uses")
    counting("_multiply", "products")
    return found


class Loop:
    """A state that one linear map changes several times; `linear` is plain or gathering."""

    def __init__(self, linear, uses=5, rows=3, seed=0):
        torch.manual_seed(seed)
        self.linear, self.uses = linear, uses
        self.x = torch.randn(rows, WIDTH, dtype=torch.float64, requires_grad=True)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))

    def step(self, state):
        return torch.tanh(self.linear(state, self.weight, self.bias))

    def __call__(self):
        state = self.x
        for _ in range(self.uses):
            state = self.step(state)
        return state.square().sum()

    @property
    def leaves(self):
        return self.x, self.weight, self.bias

    @property
    def gradients(self):
        return [None if leaf.grad is None else leaf.grad.clone() for leaf in self.leaves]


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def both(act, **options):
    """Do the same to a gathering loop and to a plain one; what it returns must be equal."""
    found, wanted = (act(Loop(linear, **options)) for linear in (gathered_linear, functional.linear))
    same(found, wanted)
    return found


def backward(loop):
    loop().backward()
    return loop.gradients


@pytest.mark.parametrize("uses", [1, 2, 12])
@pytest.mark.parametrize("rows", [1, 3, 31, 32, 33, 64, 65])
def test_gradients_are_those_of_plain_autograd(uses, rows, counts):
    both(backward, uses=uses, rows=rows)
    assert counts["uses"] == uses


@pytest.mark.parametrize(
    ("uses", "rows", "products"), [(12, 8, 2), (8, 8, 1), (9, 8, 2), (1, 3, 1), (4, 33, 4), (3, 32, 2)]
)
def test_products_of_few_rows_wait_for_one_another(uses, rows, products, counts):
    backward(Loop(gathered_linear, uses=uses, rows=rows))
    assert counts["products"] == products


@pytest.mark.parametrize("shape", [(WIDTH,), (2, WIDTH), (2, 3, WIDTH), (2, 1, 3, WIDTH)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", [True, False])
def test_shapes(shape, bias, needs, counts):
    def once(loop):
        x = torch.linspace(0, 1, torch.Size(shape).numel(), dtype=torch.float64).view(shape).requires_grad_(needs)
        out = loop.linear(x, loop.weight, loop.bias if bias else None)
        (out * torch.arange(1.0, out.numel() + 1).view_as(out)).sum().backward()
        return [out, x.grad, loop.weight.grad, loop.bias.grad]

    both(once)
    assert counts["uses"] == 1


def test_rows_that_are_not_contiguous():
    def once(loop):
        out = loop.linear(loop.x.t()[:3, None, :].expand(3, 4, WIDTH), loop.weight.t(), None)
        again = loop.linear(out.transpose(0, 1), loop.weight, loop.bias)
        again.transpose(0, 2).pow(3).sum().backward()
        return loop.gradients

    both(once, rows=WIDTH)


def test_gradcheck():
    loop = Loop(gathered_linear, uses=3)
    assert torch.autograd.gradcheck(lambda *_: loop(), loop.leaves)
    assert torch.autograd.gradgradcheck(lambda *_: loop(), loop.leaves)


# Several runs of the engine


@pytest.mark.parametrize("order", ["xw", "wx", "ww", "xwxw", "bwx", "wbw"])
def test_gradients_of_one_graph_asked_for_one_by_one(order):
    def ask(loop):
        loss = loop()
        leaves = dict(zip("xwb", loop.leaves, strict=True))
        return [torch.autograd.grad(loss, leaves[name], retain_graph=True)[0] for name in order]

    both(ask)


@pytest.mark.parametrize("inputs", ["x", "w", "xb", "xwb"])
def test_backward_to_some_inputs(inputs):
    def ask(loop):
        loss = loop()
        for _ in range(2):
            loss.backward(inputs=[dict(zip("xwb", loop.leaves, strict=True))[n] for n in inputs], retain_graph=True)
        return loop.gradients

    both(ask)


def test_weight_that_is_not_asked_for_costs_nothing(counts):
    loop = Loop(gathered_linear)
    torch.autograd.grad(loop(), loop.x)
    assert counts == {"uses": 0, "products": 0}


def test_retained_graph():
    def thrice(loop):
        loss = loop()
        for _ in range(3):
            loss.backward(retain_graph=True)
        return loop.gradients

    both(thrice)


def test_graph_that_was_not_retained_says_so():
    loop = Loop(gathered_linear)
    loss = loop()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_two_graphs_with_one_weight_in_either_order():
    for order in (0, 1):

        def act(loop, order=order):
            losses = [loop(), loop() * 3]
            losses[order].backward()
            first = loop.gradients
            losses[1 - order].backward()
            return first + loop.gradients

        both(act)


def test_gradient_is_added_to_the_one_that_is_there():
    def act(loop):
        loop.weight.grad = torch.ones_like(loop.weight)
        mine = loop.weight.grad
        loop().backward()
        assert loop.weight.grad is mine
        loop().backward()
        return loop.gradients

    both(act)


def test_kept_gradient_does_not_change_later():
    loop = Loop(gathered_linear)
    loop().backward()
    kept = loop.weight.grad
    value, loop.weight.grad = kept.clone(), None
    loop().backward()
    assert torch.equal(kept, value)
    assert loop.weight.grad.data_ptr() != kept.data_ptr()


def test_part_of_the_graph():
    def act(loop):
        first = loop.step(loop.x)
        second = loop.step(first)
        first.sum().backward(retain_graph=True)
        part = loop.gradients
        second.sum().backward()
        return part + loop.gradients

    both(act)


def test_ordinary_uses_of_the_same_weight_count_too():
    def act(loop):
        state = functional.linear(loop.step(loop.x), loop.weight)
        (loop.step(state).sum() + loop.weight.square().sum() + (state @ loop.weight).sum()).backward()
        return loop.gradients

    both(act)


# Hooks


def test_hooks_see_the_whole_gradient_once():
    def act(loop):
        seen = []
        loop.weight.register_hook(lambda grad: seen.append(grad.clone()) or 2 * grad)
        loop.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        loop().backward()
        assert len(seen) == 2
        return seen + loop.gradients

    both(act)


def test_hooks_on_modules_and_states():
    def act(loop):
        layer = nn.Linear(WIDTH, WIDTH).double()
        layer.weight, layer.bias = loop.weight, loop.bias
        if loop.linear is gathered_linear:
            many_uses(layer)
        seen = []
        layer.register_full_backward_hook(lambda _, gi, go: seen.extend([*gi, *go]))
        state = layer(layer(loop.x))
        state.register_hook(lambda grad: grad * 3)
        layer(state).sum().backward()
        return [grad.clone() for grad in seen] + loop.gradients

    both(act)


def test_input_that_a_hook_changes_before_the_sum_is_made():
    def act(loop):
        def stepped(p):
            with torch.no_grad():
                p.sub_(100)

        loop.x.register_post_accumulate_grad_hook(stepped)
        return backward(loop)

    both(act)


def test_weight_that_its_own_hook_steps():
    def act(loop):
        def stepped(p):
            with torch.no_grad():
                p.sub_(0.1 * p.grad)
            p.grad = None

        loop.weight.register_post_accumulate_grad_hook(stepped)
        for _ in range(3):
            loop().backward()
        return [loop.weight.detach()]

    both(act)


# Higher orders, batches, transformations: the ordinary way


def test_double_backward():
    def act(loop):
        grads = torch.autograd.grad(loop(), loop.leaves, create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
        return [grad.detach() for grad in grads] + loop.gradients

    both(act)


def test_penalty_on_the_gradient_of_the_input():
    def act(loop):
        loss = loop()
        (grad,) = torch.autograd.grad(loss, loop.x, create_graph=True)
        (loss + grad.square().sum()).backward()
        return loop.gradients

    both(act)


@pytest.mark.parametrize("rows", [3, 40])
def test_batched_gradients(rows):
    def act(loop):
        state = loop.step(loop.step(loop.step(loop.x))).sum(0)
        seeds = torch.eye(WIDTH, dtype=torch.float64)
        return torch.autograd.grad(state, loop.leaves, seeds, is_grads_batched=True)

    both(act, rows=rows)


@pytest.mark.parametrize("batched_first", [True, False])
def test_batched_gradients_for_one_use_of_two(batched_first):
    """An unbatched gradient and a batched one meet at the weight."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return torch.full((40, WIDTH), 2.0, dtype=torch.float64)

    def act(loop):
        first, second = loop.step(loop.x), loop.step(loop.x)
        batched, unbatched = (second, first) if batched_first else (first, second)  # the engine goes backwards
        total = (Doubled.apply(unbatched).sum() + batched.sum()).reshape(1)
        return torch.autograd.grad(total, loop.weight, torch.ones(4, 1, dtype=torch.float64), is_grads_batched=True)

    both(act, rows=40)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at its first jvp
def test_functional_transformations():
    def act(loop):
        def run(x, weight, bias):
            return torch.tanh(loop.linear(torch.tanh(loop.linear(x, weight, bias)), weight, bias)).square().sum()

        leaves = [leaf.detach() for leaf in loop.leaves]
        over = torch.func.vmap(torch.func.grad(run, argnums=1), in_dims=(0, None, None))
        _, pushed = torch.func.jvp(run, tuple(leaves), tuple(leaves))
        return [
            *torch.func.grad(run, argnums=(0, 1, 2))(*leaves),
            over(*leaves),
            pushed,
            torch.func.hessian(run)(*leaves),
        ]

    both(act)


def test_functional_call_over_parameters_that_need_gradients():
    def act(loop):
        return torch.func.vmap(lambda x: loop.linear(x, loop.weight, loop.bias))(loop.x)

    both(act)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at its first jvp
def test_forward_mode():
    def act(loop):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(loop.x, torch.ones_like(loop.x))
            return forward_ad.unpack_dual(loop.step(loop.step(x))).tangent

    both(act)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("outside", [True, False])
def test_activation_checkpoints(reentrant, outside):
    def act(loop):
        state = loop.step(loop.x) if outside else loop.x
        for _ in range(3):
            state = checkpoint(lambda s: loop.step(loop.step(s)), state, use_reentrant=reentrant)
        (loop.step(state) if outside else state).sum().backward()
        return loop.gradients

    both(act)


def test_saved_tensors_hooks():
    def act(loop):
        with torch.autograd.graph.save_on_cpu():
            return backward(loop)

    both(act)


def test_compiled():
    def act(loop):
        torch._dynamo.reset()
        leaves = [leaf.detach().requires_grad_() for leaf in loop.leaves]

        def run(x, weight, bias):
            for _ in range(2):
                x = torch.tanh(loop.linear(x, weight, bias))
            return x.sum()

        out = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
        return [out, *torch.autograd.grad(out, leaves)]

    both(act)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
def test_compiled_backward():
    def act(loop):
        torch._dynamo.reset()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loop().backward()
        return loop.gradients

    both(act)


class Repeated(nn.Module):
    """A layer that is used several times in one forward pass."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for _ in range(4):
            x = torch.tanh(self.cell(x))
        return x


class Cell(nn.Module):
    """The plainest recurrent cell."""

    def __init__(self):
        super().__init__()
        self.inputs, self.state = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, state):
        return torch.tanh(self.inputs(x) if state is None else self.inputs(x) + self.state(state))


MANY = {
    "a loop": lambda: (Repeated(), (3, WIDTH)),
    "Looped": lambda: (Looped(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), 4), (3, WIDTH)),
    "Looped, rank 1": lambda: (Looped(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), 4, rank=1), (3, WIDTH)),
    "Unrolled": lambda: (Unrolled(Cell()), (4, 3, WIDTH)),
}


@pytest.mark.parametrize("which", MANY)
@pytest.mark.parametrize("how", ["export", "strict export", "compile"])
def test_whole_models_in_programs(which, how, counts):
    plain, shape = MANY[which]()
    model, x = many_uses(copy.deepcopy(plain.double())), torch.randn(shape, dtype=torch.float64)
    total = lambda output: sum(leaf.square().sum() for leaf in tree_leaves(output))  # noqa: E731
    if how == "compile":
        torch._dynamo.reset()
        program = torch.compile(model, fullgraph=True, backend="aot_eager")
    elif how == "export":
        program = torch.export.export(model, (x,), strict=False).module()
    else:
        program = torch.export.export(model, (x,), strict=True).module()
    for subject in (program, plain):
        total(subject(x)).backward()
    assert counts["uses"] == 0
    wanted = {name: parameter.grad for name, parameter in plain.named_parameters()}
    found = {name.removeprefix("_orig_mod."): parameter.grad for name, parameter in program.named_parameters()}
    same([total(program(x)), *(found[name] for name in wanted)], [total(plain(x)), *wanted.values()])
    total(model(x)).backward()
    assert counts["uses"] > 0  # outside of the program it gathers


def test_traced(counts):
    model, x = many_uses(nn.Sequential(nn.Linear(4, 4))), torch.randn(2, 4)
    same(torch.fx.symbolic_trace(model)(x), model(x).detach())
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: shared_linear(x, model[0].weight, model[0].bias))(x)
    same(traced(x), model(x))
    assert counts["uses"] == 0


def test_autocast(counts):
    def act(loop):
        loop = Loop(loop.linear)
        weight, x = nn.Parameter(loop.weight.float()), loop.x.float()
        with torch.autocast("cpu", torch.bfloat16):
            out = loop.linear(torch.tanh(loop.linear(x, weight, None)), weight, None)
        out.float().sum().backward()
        return [out, weight.grad]

    both(act)
    assert counts["uses"] == 0


# What goes wrong


def test_exception_in_the_middle_of_backward():
    def act(loop):
        angry = [True]

        def once(grad):
            if angry:
                angry.clear()
                raise RuntimeError("once")

        state = loop.step(loop.step(loop.x))
        state.register_hook(once)
        loss = loop.step(loop.step(state)).sum()
        with pytest.raises(RuntimeError, match="once"):
            loss.backward(retain_graph=True)
        loop.x.grad = loop.weight.grad = loop.bias.grad = None
        loss.backward(retain_graph=True)
        first = loop.gradients
        loop().backward()
        return first + loop.gradients

    both(act)


def test_weight_changed_between_forward_and_backward_is_noticed_as_ever():
    for linear in (gathered_linear, functional.linear):
        loop = Loop(linear)
        loss = loop()
        with torch.no_grad():
            loop.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_new_graph_beside_an_old_one_after_a_step():
    def act(loop):
        kept = loop()
        kept.backward(retain_graph=True)
        with torch.no_grad():
            loop.weight.mul_(0.5)
        loop().backward()
        return loop.gradients

    both(act)


def test_weight_with_new_memory_beside_an_old_graph():
    def act(loop):
        kept = loop.step(loop.x)
        loop.weight.data = loop.weight.data * 2
        (kept + loop.step(loop.x)).sum().backward()
        return loop.gradients

    both(act)


def test_weight_of_another_dtype_beside_an_old_graph():
    weight, x = nn.Parameter(torch.ones(4, 4, dtype=torch.float16)), torch.ones(2, 4)
    kept = gathered_linear(x.half(), weight)
    weight.data = weight.data.view(torch.bfloat16)  # the same memory
    out = gathered_linear(x.bfloat16(), weight)
    assert kept.dtype == torch.float16
    out.sum().backward()
    same(weight.grad, torch.full((4, 4), 2.0, dtype=torch.bfloat16))


def test_shapes_that_do_not_fit_get_the_message_of_torch():
    loop = Loop(shared_linear)
    for linear in (shared_linear, functional.linear):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            linear(loop.x[:, :-1], loop.weight)


def test_many_threads_on_one_graph_and_on_graphs_of_their_own():
    wanted = backward(Loop(functional.linear))[1]
    loop, found = Loop(gathered_linear), []
    shared = loop()

    def work():
        for _ in range(20):
            found.append(torch.autograd.grad(shared, loop.weight, retain_graph=True)[0])
            found.append(torch.autograd.grad(loop(), loop.weight)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    for grad in found:
        same(grad, wanted)


# What is held, and when it steps aside


def peak(step):
    """Return the most bytes that a step holds at any time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events)
    return max(itertools.accumulate(size for _, size in changes))


def test_one_buffer_of_the_size_of_the_weight():
    weight, x = nn.Parameter(torch.randn(256, 256)), torch.randn(4, 256)

    def step(linear):
        weight.grad = None
        state = x
        for _ in range(6):
            state = torch.tanh(linear(state, weight))
        state.sum().backward()

    size = 256 * 256 * 4
    step(gathered_linear)
    weight.grad = None
    assert peak(lambda: step(gathered_linear)) < 1.6 * size
    weight.grad = None
    assert peak(lambda: step(functional.linear)) > 2.5 * size


def gathering_of(loop):
    return accumulate._GATHERINGS.get(id(loop.weight))


def test_nothing_outlives_the_graph():
    loop = Loop(gathered_linear)
    loss = loop()
    gathering = weakref.ref(gathering_of(loop))
    gc.disable()
    try:
        loss.backward()
        assert gathering().sums == {}
        del loss
        assert gathering() is None
        assert gathering_of(loop) is None
    finally:
        gc.enable()


def test_uses_of_one_weight_in_one_graph_share_a_gathering():
    loop = Loop(gathered_linear)
    first = loop.step(loop.x)
    gathering = gathering_of(loop)
    second = loop.step(loop.x)
    assert gathering_of(loop) is gathering
    uses = [state.grad_fn.next_functions[0][0] for state in (first, second)]
    assert [use.gathering is gathering for use in uses] == [True, True]


def steps_aside(monkeypatch, x, weight):
    """Tell whether `shared_linear` is `F.linear` for these."""
    used = []
    monkeypatch.setattr(accumulate._LinearUse, "apply", lambda *_: used.append(1))
    shared_linear(x, weight)
    return not used


def test_where_it_steps_aside(monkeypatch):
    x, weight = torch.randn(3, 4), nn.Parameter(torch.randn(4, 4))
    assert not steps_aside(monkeypatch, x, weight)
    assert not steps_aside(monkeypatch, x, torch.randn(4, 4, requires_grad=True))
    assert not steps_aside(monkeypatch, nn.Parameter(x), weight)
    assert steps_aside(monkeypatch, x, torch.randn(4, 4))
    assert steps_aside(monkeypatch, x, weight.t())
    assert steps_aside(monkeypatch, x[:0], weight)
    assert steps_aside(monkeypatch, torch.randn(4), nn.Parameter(torch.randn(4)))
    assert steps_aside(monkeypatch, x.cfloat(), nn.Parameter(torch.randn(4, 4).cfloat()))
    assert steps_aside(monkeypatch, x.to("meta"), nn.Parameter(torch.randn(4, 4, device="meta")))
    assert steps_aside(monkeypatch, x.to_sparse(), weight)
    with torch.no_grad():
        assert steps_aside(monkeypatch, x, weight)
    with torch.inference_mode():
        assert steps_aside(monkeypatch, x, weight)
    with FlopCounterMode(display=False):
        assert steps_aside(monkeypatch, x, weight)


@pytest.mark.parametrize(
    ("out", "width", "rows", "gathers"),
    [
        (1024, 1024, 64, True),
        (1024, 1024, 65, False),
        (1024, 1023, 1, False),
        (2048, 512, 32, True),
        (512, 2048, 33, False),
        (4096, 4096, 256, True),
    ],
)
@pytest.mark.parametrize("faster", [False, True])
def test_rule_of_size(monkeypatch, out, width, rows, gathers, faster):
    monkeypatch.undo()
    monkeypatch.setattr(accumulate, "uses_onednn", lambda x, weight: faster)
    gathers = gathers or (faster and out * width >= 2**20)  # faster products pay by themselves
    x, weight = torch.empty(rows, width), nn.Parameter(torch.empty(out, width))
    assert steps_aside(monkeypatch, x, weight) is not gathers


# Modules


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()


def looped(model, x, uses=4):
    for _ in range(uses):
        x = model(x)
    return x.square().mean()


def test_twenty_steps_of_a_looped_block(counts):
    models = [block(), many_uses(block())]
    for model in models:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        for _ in range(20):
            optimizer.zero_grad()
            looped(model, torch.randn(2, 3, 8, dtype=torch.float64)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert counts["uses"] == 20 * 4 * 2
    same(dict(models[1].named_parameters()), dict(models[0].named_parameters()))


def test_modules_stay_what_they_are():
    plain, model = block(), many_uses(block())
    assert str(model) == str(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model.linear1, nn.Linear)
    assert type(model.linear1) is not nn.Linear
    assert many_uses(model) is model


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_gather_too(copied, counts):
    model = copied(many_uses(nn.Sequential(nn.Linear(4, 4))))
    looped(model, torch.randn(2, 4)).backward()
    assert counts["uses"] == 4


def test_copy_while_a_graph_is_alive():
    model = many_uses(nn.Linear(4, 4).double())
    loss = looped(model, torch.ones(2, 4, dtype=torch.float64))
    twin = copy.deepcopy(model)
    loss.backward()
    looped(twin, torch.ones(2, 4, dtype=torch.float64)).backward()
    same(twin.weight.grad, model.weight.grad)


def test_change_of_dtype():
    model = many_uses(nn.Linear(4, 4)).to(torch.bfloat16)
    looped(model, torch.ones(2, 4, dtype=torch.bfloat16)).backward()
    assert model.weight.grad.dtype == torch.bfloat16


def tied_stack():
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4).double() for _ in range(5))})
    tied.tie_layers(model, "layers", pattern="all", private=["*.bias"])
    return model


@pytest.mark.parametrize("tied_first", [True, False])
def test_tied_layers_share_one_gathering(tied_first, counts):
    model = tied_stack()
    if tied_first:
        many_uses(model)
    else:
        model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4).double() for _ in range(5))})
        model.load_state_dict(tied_stack().state_dict(), strict=False)
        tied.tie_layers(many_uses(model), "layers", pattern="all", private=["*.bias"])
        plain = tied_stack()
        with torch.no_grad():
            for young, old in zip(model.parameters(), plain.parameters(), strict=True):
                young.copy_(old)
    plain, x = tied_stack(), torch.ones(2, 4, dtype=torch.float64)
    for subject in (model, plain):
        state = x
        for layer in subject["layers"]:
            state = torch.tanh(layer(state))
        state.sum().backward()
    assert counts["uses"] == 5
    assert counts["products"] == 1
    same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    assert len(tied.ties(copy.deepcopy(model))) == 4


def test_computed_weights_take_the_ordinary_way(counts):
    model = many_uses(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    looped(model, torch.ones(2, 4)).backward()
    assert counts["uses"] == 0
    later = nn.utils.parametrizations.weight_norm(many_uses(nn.Linear(4, 4)))
    looped(later, torch.ones(2, 4)).backward()
    assert counts["uses"] == 0


def test_frozen_weight():
    model = many_uses(nn.Linear(4, 4))
    model.weight.requires_grad_(False)
    looped(model, torch.ones(2, 4)).backward()
    assert model.weight.grad is None
    assert model.bias.grad is not None


NO_MODULE = """\
many_uses(model)
  The model is no module.
  found:    Tensor
  expected: an nn.Module
  fix:      for a weight of your own use tied.nn.shared_linear(x, weight, bias)
The model was not changed."""


def test_no_module():
    with pytest.raises(tied.KindError) as caught:
        many_uses(torch.ones(2, 2))  # type: ignore[type-var]
    assert str(caught.value) == NO_MODULE
