"""Operations that nobody listed: what users and torch's own tools do to modules, each with its outcome.

The first part applies the law of `test_survival.py` after each; the second pins single outcomes.
"""

import copy
import inspect
import io
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from corpus import CASES, MAIN, Case, Reference, assert_still_tied, distance, loss, tied_model
from stack import Stack
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import tied

quiet = pytest.mark.filterwarnings("ignore")


def _source(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the first owner of a source Parameter, and the attribute."""
    address = next(a for a in tied.ties(model)[0].source.sources())
    return model.get_submodule(".".join(address[:-1])), address[-1]


# -- the law holds after -------------------------------------------------------------------------------


def _swap_tensors(model: nn.Module) -> nn.Module:
    owner, name = _source(model)
    torch.utils.swap_tensors(getattr(owner, name), nn.Parameter(torch.randn_like(getattr(owner, name))))
    return model


def _through_vector(model: nn.Module) -> nn.Module:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 1.5, model.parameters())
    return model


def _hooked(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: None)
        module.register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient)
        parameter.register_post_accumulate_grad_hook(lambda _: None)
    return model


def _walked(model: nn.Module) -> nn.Module:
    """Walk what debuggers and memory profilers walk."""
    seen: set[int] = set()

    def walk(value: object, depth: int = 0) -> None:
        if id(value) in seen or depth > 6:
            return
        seen.add(id(value))
        inside = list(value.values()) if isinstance(value, dict) else []
        for each in [*inside, *getattr(value, "__dict__", {}).values()]:
            walk(each, depth + 1)

    walk(model)
    for module in model.modules():
        inspect.getmembers(module)
        dir(module)
        repr(module)
    return model


def _in_threads(model: nn.Module) -> nn.Module:
    case_inputs = torch.randn(3, 6).double() if hasattr(model, "encoder") else torch.randint(0, 9, (3, 4))
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(model(case_inputs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(results[0], other) for other in results)
    return model


def _averaged(model: nn.Module) -> nn.Module:
    averaged = AveragedModel(model)
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        averaged.update_parameters(model)
    return averaged.module


def _compiled_in_place(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    twin.compile(backend="aot_eager")
    return model


def _through_optimizer_file(model: nn.Module) -> nn.Module:
    optimizer = AdamW(model.parameters())
    loss_of = sum(p.square().sum() for p in model.parameters())
    loss_of.backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    AdamW(model.parameters()).load_state_dict(torch.load(buffer, weights_only=True))
    return model


def _safetensors(model: nn.Module) -> nn.Module:
    from safetensors.torch import load, save

    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    shared = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # save() takes no two names for one
    twin.load_state_dict(load(save(shared)))
    return twin


def _moved_to_another_model(model: nn.Module) -> nn.Module:
    other = nn.Module()
    other.inner = model
    return copy.deepcopy(other).inner


def _inference(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        for module in model.modules():
            _ = getattr(module, "weight", None)
    return model


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def _frozen_and_thawed(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.requires_grad_(True)


def _state_dict_hooks(model: nn.Module) -> nn.Module:
    model.register_state_dict_post_hook(lambda *_: None)
    model.register_load_state_dict_pre_hook(lambda *_: None)
    model.register_load_state_dict_post_hook(lambda *_: None)
    model.load_state_dict(model.state_dict())
    return model


def _guarded(model: nn.Module) -> nn.Module:
    with tied.guard(model):
        model.float().double()
        model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)
    return model


def _retied(model: nn.Module) -> nn.Module:
    assert tied.retie(model) == ()
    assert tied.adopt(model) == ()
    return model


OPERATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "swap-tensors": _swap_tensors,
    "parameters-to-vector": _through_vector,
    "hooks": _hooked,
    "walkers-inspect-dir": _walked,
    "threads": _in_threads,
    "averaged-model": _averaged,
    "compile-in-place": _compiled_in_place,
    "optimizer-file": _through_optimizer_file,
    "safetensors": _safetensors,
    "moved-to-another-model": _moved_to_another_model,
    "inference-mode": _inference,
    "channels-last": _channels_last,
    "frozen-and-thawed": _frozen_and_thawed,
    "state-dict-hooks": _state_dict_hooks,
    "guarded": _guarded,
    "retie-adopt": _retied,
    "half-and-back": lambda model: model.half().double(),
    "bfloat16-and-back": lambda model: model.bfloat16().double(),
    "named-walks": lambda model: (list(model.named_parameters()), list(model.named_buffers()), model)[-1],
    "fused-set-to-none": lambda model: (model.zero_grad(set_to_none=True), model)[-1],
}


@quiet
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", MAIN, ids=str)
def test_still_tied_after(case: Case, operation: str) -> None:
    if operation in ("half-and-back", "bfloat16-and-back") and "exp" in case.source:
        pytest.skip("rounding")
    assert_still_tied(OPERATIONS[operation](tied_model(case)), case)


# -- other ways to train -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_lbfgs(case: Case) -> None:
    model = tied_model(case)
    reference = Reference(case, model)
    for subject in (model, reference):
        stepper = LBFGS(list(subject.parameters()), lr=0.1, max_iter=5)

        def closure(subject=subject, stepper=stepper) -> Tensor:
            stepper.zero_grad()
            value = loss(subject(case.inputs()))
            value.backward()
            return value

        stepper.step(closure)
    assert distance(model, reference) <= 1e-12


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_two_parameter_groups_and_foreach(case: Case) -> None:
    model = tied_model(case)
    reference = Reference(case, model)
    for subject in (model, reference):
        first, *rest = list(subject.parameters())
        stepper = SGD([first], lr=0.1, momentum=0.9, foreach=True)
        stepper.add_param_group({"params": rest, "lr": 0.01})
        for step in range(3):
            stepper.zero_grad()
            loss(subject(case.inputs(step))).backward()
            stepper.step()
    assert distance(model, reference) <= 1e-12


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_activation_checkpointing(case: Case) -> None:
    model, plain = tied_model(case), tied_model(case)
    loss(checkpoint(model, case.inputs(), use_reentrant=False)).backward()
    loss(plain(case.inputs())).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_per_sample_gradients(case: Case) -> None:
    model = tied_model(case)
    state = {n: p.detach() for n, p in model.named_parameters()}
    inputs = case.inputs()

    def of_one(state: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, state, (sample.unsqueeze(0),)).square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        each = vmap(grad(of_one), (None, 0))(state, inputs)
        total = grad(lambda s: functional_call(model, s, (inputs,)).square().sum())(state)
    for name, gradients in each.items():
        torch.testing.assert_close(gradients.sum(0), total[name], rtol=1e-10, atol=1e-12)


@quiet
@pytest.mark.parametrize("case", [c for c in MAIN if c.model.__name__ != "Transformer"], ids=str)
def test_forward_mode(case: Case) -> None:
    model = tied_model(case)
    reference = Reference(case, model)
    state = {n: p.detach() for n, p in model.named_parameters()}
    tangents = {n: torch.randn_like(p) for n, p in state.items()}

    def of_reference(s: dict[str, Tensor]) -> Tensor:
        tensors = {**reference.tensors, **s}
        return functional_call(reference.shell, {**tensors, case.target: case.oracle(tensors)}, (case.inputs(),))

    ours = jvp(lambda s: functional_call(model, s, (case.inputs(),)), (state,), (tangents,))
    theirs = jvp(of_reference, (state,), (tangents,))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_autocast(case: Case) -> None:
    model = tied_model(case).float()
    reference = Reference(case, model)
    reference.shell.float()
    inputs = case.inputs().float() if case.inputs().is_floating_point() else case.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(inputs), reference(inputs), rtol=2e-2, atol=2e-2)


# -- graphs --------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("case", CASES, ids=str)
def test_export_and_unflatten(case: Case) -> None:
    model = tied_model(case)
    program = torch.export.export(model, (case.inputs(),))
    held = program.state_dict
    assert held[case.target] is held[case.source_name] if case.is_identity else case.target not in held
    for made in (program.module(), torch.export.unflatten(program)):
        torch.testing.assert_close(made(case.inputs()), model(case.inputs()), rtol=1e-10, atol=1e-12)


@quiet
@pytest.mark.parametrize("case", CASES, ids=str)
def test_trace(case: Case) -> None:
    model = tied_model(case).eval()
    traced = torch.jit.trace(model, case.inputs(), check_trace=False)
    torch.testing.assert_close(traced(case.inputs()), model(case.inputs()), rtol=1e-10, atol=1e-12)


def test_symbolic_trace_freezes_a_transform_into_its_graph() -> None:
    """torch.fx calls leaf modules as they are, so a tied leaf goes on reading late."""
    case = CASES[0]
    model = tied_model(case)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(case.inputs()), model(case.inputs()))
    nn.init.normal_(model.encoder.weight)
    torch.testing.assert_close(graph(case.inputs()), model(case.inputs()))


def test_a_compiled_submodule_in_place_of_the_source() -> None:
    case = CASES[0]
    model = tied_model(case)
    expected = model(case.inputs())
    torch._dynamo.reset()
    model.encoder = torch.compile(model.encoder, backend="aot_eager")
    torch.testing.assert_close(model(case.inputs()), expected)
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())


def test_a_wrapper_that_passes_attributes_on() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tied_model(CASES[0])
    model.encoder = checkpoint_wrapper(model.encoder)
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())


# -- parts ---------------------------------------------------------------------------------------------


def test_sequential_of_the_children() -> None:
    model = tied_model(CASES[0])
    children = nn.Sequential(*list(model.children()))
    assert [str(t) for t in tied.ties(children)] == ["1.weight = 0.weight.T"]


def test_a_slice_of_a_module_list() -> None:
    model = Stack()
    tied.tie(model, "layers.*.mlp", "layers.0.mlp")
    with_source, without = model.layers[:2], model.layers[1:]
    assert str(tied.ties(with_source)[0]) == "1.mlp.weight = 0.mlp.weight"
    assert tied.ties(without) == ()
    assert torch.equal(without[0].mlp.weight, model.layers[0].mlp.weight)
    alone = copy.deepcopy(without)
    assert len([n for n, _ in alone.named_parameters() if n.endswith("mlp.weight")]) == 1, "as in plain torch"
    assert alone[0].mlp.weight is alone[1].mlp.weight


def test_skip_init_and_the_class() -> None:
    model = tied_model(CASES[0])
    made = nn.utils.skip_init(type(model.decoder), 4, 6)
    assert made.weight.shape == (6, 4)
    assert isinstance(made.weight, nn.Parameter)


def test_a_replica_reads_the_original() -> None:
    """`DataParallel` makes replicas by this method; their tied weights are still the original's."""
    model = tied_model(CASES[0])
    replica = model._replicate_for_data_parallel()
    assert torch.equal(replica.decoder.weight, model.encoder.weight.t())


def test_deleting_the_source_is_found_at_the_read() -> None:
    model = tied_model(CASES[0])
    del model.encoder.weight
    with pytest.raises(tied.SourceGoneError, match="has no 'weight' any more"):
        _ = model.decoder.weight


def test_hasattr_and_getattr_with_a_default_do_not_hide_a_lost_source() -> None:
    model = tied_model(CASES[0])
    del model.encoder
    with pytest.raises(tied.SourceGoneError):
        hasattr(model.decoder, "weight")


def test_get_parameter() -> None:
    model = tied_model(next(c for c in CASES if c.source == "embed.weight"))
    assert model.get_parameter("head.weight") is model.embed.weight
    other = tied_model(CASES[0])
    assert torch.equal(other.get_parameter("decoder.weight"), other.encoder.weight.t())


@quiet
def test_what_wants_a_parameter_in_the_targets_place_is_refused() -> None:
    from torch.nn.utils import parametrizations, prune

    def refusals() -> Iterator[Callable[[nn.Module], object]]:
        yield parametrizations.weight_norm
        yield parametrizations.spectral_norm
        yield nn.utils.weight_norm
        yield lambda m: prune.l1_unstructured(m, "weight", 0.5)
        yield lambda m: nn.utils.parametrize.register_parametrization(m, "weight", nn.Tanh())

    identity = next(c for c in CASES if c.source == "embed.weight")
    for refuse in refusals():
        for case, at in ((CASES[0], "decoder"), (identity, "head")):
            model = tied_model(case)
            before = model.state_dict()
            with pytest.raises((ValueError, KeyError, TypeError)):
                refuse(model.get_submodule(at))
            assert model.state_dict().keys() == before.keys()
            assert_still_tied(model, case)
            tied.untie(model)
            refuse(model.get_submodule(at))


@quiet
def test_pruning_a_target_says_what_to_do() -> None:
    model = tied_model(next(c for c in CASES if c.source == "embed.weight"))
    with pytest.raises(tied.KindError) as error:
        nn.utils.prune.l1_unstructured(model.head, "weight", 0.5)
    assert str(error.value) == (
        "'head.weight' is tied, so that it cannot be pruned here.\n"
        "  found:    head.weight = embed.weight; 'weight_orig' was registered\n"
        "  expected: a Parameter of the module's own\n"
        "  fix:      prune the source, which all uses then follow, or call tied.untie(model, 'head.weight') first\n"
        "The model was not changed."
    )


class Quantized(torch.Tensor):
    """As quantized tensors of torchao are: operations on views are not implemented."""

    @staticmethod
    def __new__(cls) -> "Quantized":
        return torch.Tensor._make_wrapper_subclass(cls, (4, 6), dtype=torch.float64)

    @classmethod
    def __torch_dispatch__(cls, func: object, *_: object) -> Tensor:
        if func is torch.ops.aten.detach.default:
            return cls()
        raise NotImplementedError(f"{func}")


def test_a_source_that_knows_no_views_is_refused() -> None:
    model = tied_model(CASES[0])
    model.encoder.weight = nn.Parameter(Quantized(), requires_grad=False)
    with pytest.raises(tied.KindError) as error:
        _ = model.decoder.weight
    assert str(error.value) == (
        "The source is a Quantized now, which the transform of a tie cannot be applied to.\n"
        f"  found:    a tensor of {__name__}\n"
        "  expected: a tensor that knows torch's operations on views\n"
        "  fix:      call tied.untie(model) before the source is converted (quantized, say): "
        "every use is then converted\n"
        "The model was not changed."
    )


@quiet
def test_dynamic_quantization_is_right_or_refused() -> None:
    model = tied_model(CASES[0]).float()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    with pytest.raises(tied.SourceGoneError, match=r"tied\.untie"):
        quantized(torch.randn(2, 6))
    tied.untie(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert (quantized(torch.ones(2, 6)) - model(torch.ones(2, 6))).abs().max() < 0.1


@quiet
def test_scripting_is_refused_and_untie_is_the_way() -> None:
    model = tied_model(CASES[0])
    with pytest.raises(RuntimeError):
        torch.jit.script(model)
    tied.untie(model)
    torch.jit.script(model)


# -- files of others -----------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("case", MAIN, ids=str)
def test_distributed_checkpoint(case: Case, tmp_path) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = tied_model(case)
    for folder, read, write in (
        ("plain", lambda m: m.state_dict(), lambda m, s: m.load_state_dict(s)),
        ("api", get_model_state_dict, set_model_state_dict),
    ):
        other = tied_model(case)
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        dcp.save(read(model), checkpoint_id=tmp_path / folder)
        state = read(other)
        assert (case.target in state) == case.is_identity, "as in plain torch"
        dcp.load(state, checkpoint_id=tmp_path / folder)
        write(other, state)
        torch.testing.assert_close(other(case.inputs()), model(case.inputs()), rtol=0, atol=0)
        assert_still_tied(other, case)


@quiet
@pytest.mark.parametrize("case", [c for c in MAIN if "order" not in c.source], ids=str)
def test_accelerate_builds_on_meta_and_loads(case: Case, tmp_path) -> None:
    import accelerate

    model = tied_model(case)
    torch.save(model.state_dict(), tmp_path / "model.bin")
    with accelerate.init_empty_weights(include_buffers=True):
        empty = case.build()
    tied.tie(empty, case.target, case.source)
    assert next(empty.parameters()).is_meta
    filled = accelerate.load_checkpoint_and_dispatch(empty, str(tmp_path / "model.bin"), device_map={"": "cpu"})
    torch.testing.assert_close(filled(case.inputs()), model(case.inputs()), rtol=0, atol=0)
    assert_still_tied(filled, case)


def test_safetensors_reads_and_writes_each_weight_once(tmp_path) -> None:
    from safetensors.torch import load_file, load_model, save_file, save_model

    for case in MAIN:
        model = tied_model(case)
        save_model(model, str(tmp_path / "model"))
        if case.is_identity:
            with pytest.raises(RuntimeError, match="Some tensors share memory"):
                save_file(model.state_dict(), tmp_path / "file")
            tied.save(model, tmp_path / "file.safetensors")
            (tmp_path / "file.safetensors").rename(tmp_path / "file")
        else:
            save_file(model.state_dict(), tmp_path / "file")
        assert case.target not in load_file(tmp_path / "file")
        other = tied_model(case)
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        load_model(other, str(tmp_path / "model"))
        torch.testing.assert_close(other(case.inputs()), model(case.inputs()), rtol=0, atol=0)
