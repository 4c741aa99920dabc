"""Every kind of tensor and module that torch has: the look never fails, and says what is there.

What is one object is `tied`, what lies over the same values is `half-tied`, and copies share nothing: for sparse,
nested, quantized, faked and sharded tensors too, whose structure (indices, offsets) may well be shared.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import Parameter
from torch.optim import AdamW

import tied

pytestmark = pytest.mark.filterwarnings("ignore")  # torch calls half of these kinds a prototype


class Subclass(Tensor):
    """A tensor with a class of its own."""


def nested(layout: torch.layout = torch.strided) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.randn(8, 8), 0.1, 0, torch.qint8)


KINDS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.randn(8, 8),
    "turned": lambda: torch.randn(8, 8).t(),
    "expanded": lambda: torch.randn(8).expand(8, 8),
    "sparse": lambda: torch.eye(8).to_sparse(),
    "csr": lambda: torch.eye(8).to_sparse_csr(),
    "csc": lambda: torch.eye(8).to_sparse_csc(),
    "bsr": lambda: torch.eye(8).to_sparse_bsr((2, 2)),
    "nested": nested,
    "jagged": lambda: nested(torch.jagged),
    "quantized": quantized,
    "subclass": lambda: torch.randn(8, 8).as_subclass(Subclass),
    "complex": lambda: torch.randn(8, 8, dtype=torch.complex64),
    "conjugate": lambda: torch.randn(8, 8, dtype=torch.complex64).conj(),
    "float8": lambda: torch.randn(8, 8).to(torch.float8_e4m3fn),
    "boolean": lambda: torch.rand(8, 8) > 0.5,
    "scalar": lambda: torch.tensor(3.0),
    "meta": lambda: torch.empty(8, 8, device="meta"),
}
ELEMENTS = {"nested": 18, "jagged": 18, "scalar": 1}
NEWS = {"float8", "subclass"}  # equal copies of these are worth a line ...


def module(**tensors: Tensor) -> nn.Module:
    made = nn.Module()
    for name, tensor in tensors.items():
        if isinstance(tensor, Parameter) or tensor.is_floating_point() or tensor.is_complex():
            made.register_parameter(name, tensor if isinstance(tensor, Parameter) else Parameter(tensor))
        else:
            made.register_buffer(name, tensor, persistent=False)
    return made


def looked_at(model: nn.Module, *inputs: object, **options: object) -> tied.Report:
    """Look, write the report in every form, and return it."""
    report = tied.check(model, *inputs, **options)
    assert str(report)
    assert report.to_html()
    assert report.to_sarif()
    assert json.dumps(report.to_json())
    assert report.bytes_saved >= 0
    return report


def states(report: tied.Report) -> list[tuple[str, tuple[str, ...]]]:
    return [(group.state, group.names) for group in report.groups]


@pytest.mark.parametrize("kind", KINDS)
def test_one_object_is_tied(kind):
    tensor = KINDS[kind]()
    held = module(a=tensor)
    model = nn.ModuleDict({"one": held, "two": held})
    report = looked_at(model)
    assert states(report) == [("tied", ("one.a", "two.a"))]
    own = list(model.parameters())
    assert report.parameters == (ELEMENTS.get(kind, 64) if own else 0)
    assert report.bytes == report.bytes_saved == report.groups[0].bytes


@pytest.mark.parametrize("kind", set(KINDS) - {"quantized", "boolean"})
def test_two_parameters_over_one_memory_are_half_tied(kind):
    tensor = KINDS[kind]()
    report = looked_at(module(a=Parameter(tensor), b=Parameter(tensor.detach())))
    assert states(report) == [("half-tied", ("a", "b"))]
    assert [finding.code for finding in report.findings] == ["TIE101"]
    assert report.parameters == ELEMENTS.get(kind, 64)
    assert report.bytes == report.groups[0].bytes


@pytest.mark.parametrize("kind", set(KINDS) - {"expanded", "float8", "plain", "turned"})
def test_copies_share_nothing(kind):
    tensor = KINDS[kind]()
    report = looked_at(module(a=tensor, b=tensor.clone()))
    assert (report.groups, report.findings, report.bytes_saved) == ((), (), 0)
    assert report.bytes == 2 * looked_at(module(a=tensor)).bytes


def test_buffers_of_quantized_models():
    weight = quantized()
    report = looked_at(module(a=weight, b=weight[:4]))
    assert [(g.state, g.names, g.transforms) for g in report.groups] == [
        ("half-tied", ("a", "b"), ("identity", "[:4]"))
    ]
    assert [finding.code for finding in report.findings] == ["TIE110"]
    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
    assert looked_at(packed).ok


def test_values_of_eight_bits_are_compared_too():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        weight = torch.randn(8, 8).to(dtype)
        assert states(looked_at(module(a=weight, b=weight.clone()))) == [("equal", ("a", "b"))]
        ones = torch.ones(8, 8).to(dtype)
        assert states(looked_at(module(a=ones, b=ones.clone()))) == []


def test_sparse_tensors_of_one_structure_share_nothing():
    indices = torch.tensor([[0, 1, 2], [2, 0, 1]])
    one, two = (torch.sparse_coo_tensor(indices, torch.randn(3), (3, 3)) for _ in range(2))
    assert one._indices().data_ptr() == two._indices().data_ptr()
    assert states(looked_at(module(a=one, b=two))) == []


def test_a_sparse_tensor_and_its_values():
    weight = torch.eye(8).to_sparse()
    report = looked_at(module(a=weight, b=weight._values()))
    assert states(report) == [("half-tied", ("a", "b"))]
    assert report.groups[0].transforms == ("identity", "overlap")
    turned = torch.sparse_coo_tensor(weight._indices().flip(0), weight._values(), (8, 8))
    turned = looked_at(module(a=weight, b=turned))
    assert turned.groups[0].transforms[1] == "overlap"  # no transform of the language says it


def test_real_and_complex_over_one_memory():
    weight = torch.randn(8, 8, dtype=torch.complex64)
    report = looked_at(module(a=weight, b=torch.view_as_real(weight)))
    assert states(report) == [("half-tied", ("b", "a"))]
    assert (report.parameters, report.bytes) == (128, 512)


# -- faked tensors and devices ------------------------------------------------------------------------------


class Declares(nn.Module):
    """What `tied` knows a model of transformers by."""

    _tied_weights_keys: ClassVar = {"head.weight": "embed.weight"}

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"tie_word_embeddings": True})
        self.embed, self.head = nn.Embedding(60, 16), nn.Linear(16, 60, bias=False)


def found(model: nn.Module) -> list[tuple[str, str]]:
    report = looked_at(model)
    return [(group.state, finding.code) for group, finding in zip(report.groups, report.findings, strict=True)]


def test_faked_models_have_memory_and_no_values():
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight, model[2].weight = model[0].weight, Parameter(model[0].weight.t())
        assert states(looked_at(model)) == [("half-tied", ("0.weight", "1.weight", "2.weight"))]
        assert found(Declares()) == [("declared", "TIE104")]
        wide = nn.ModuleDict({"embed": nn.Embedding(60, 16), "head": nn.Linear(16, 60, bias=False)})
        wide.head.weight = wide.embed.weight
        assert looked_at(wide).ok  # how wide it is drawn cannot be read
    assert states(looked_at(model)) == [("half-tied", ("0.weight", "1.weight", "2.weight"))]


def test_ends_on_two_devices():
    with FakeTensorMode():
        model = Declares()
        model.head.weight = Parameter(torch.empty(60, 16, device="cuda"))
        assert model.head.weight.device != model.embed.weight.device
        assert found(model) == [("declared", "TIE501")]
    (finding,) = looked_at(model).findings
    assert finding.message == "Declares declares head.weight = embed.weight, which are copies on two devices."


def test_addresses_of_two_devices_do_not_meet():
    """Two faked devices count their bytes alike, and share nothing."""
    with FakeTensorMode():
        model = module(a=torch.empty(8, 8), b=torch.empty(8, 8, device="cuda"))
        assert states(looked_at(model)) == []
        assert states(looked_at(module(a=torch.empty(8, 8), b=torch.empty(8, 8, device="meta")))) == []


def test_ends_of_two_dtypes():
    model = Declares()
    model.head.weight = Parameter(model.embed.weight.detach().double())
    assert found(model) == [("equal", "TIE103")]
    model.head.weight = Parameter(model.embed.weight.detach().bfloat16())
    assert found(model) == [("drifted", "TIE102")]


# -- kinds of modules -----------------------------------------------------------------------------------------


def test_lazy_modules():
    lazy = nn.LazyLinear(3)
    report = looked_at(nn.ModuleDict({"a": lazy, "b": lazy, "c": nn.LazyConv2d(3, 3), "norm": nn.LazyBatchNorm1d()}))
    assert states(report) == [("tied", ("a", "b"))]
    assert (report.parameters, report.groups[0].bytes) == (0, 0)
    other = nn.LazyLinear(3)
    other.weight = lazy.weight
    assert states(looked_at(nn.ModuleDict({"a": lazy, "b": other}))) == [("tied", ("a.weight", "b.weight"))]


def test_lists_and_dicts_of_parameters():
    weight = Parameter(torch.randn(8, 8))
    several = nn.ParameterList([weight, Parameter(weight.t()), Parameter(torch.randn(8))])
    model = nn.ModuleDict(
        {"list": several, "dict": nn.ParameterDict({"x": weight, "y": nn.ParameterDict({"z": weight})})}
    )
    (group,) = looked_at(model).groups
    assert (group.state, group.names) == ("half-tied", ("list.0", "dict.x", "dict.y.z", "list.1"))
    assert group.transforms == ("identity", "identity", "identity", ".T")


def test_modules_that_hold_each_other():
    a, b, model = nn.Linear(4, 4), nn.Linear(4, 4), nn.Module()
    a.other, b.other, model.a, model.b, model.me = b, a, a, b, model
    report = looked_at(model)
    assert {names for _, names in states(report)} == {
        ("a.weight", "b.other.weight"),
        ("a.bias", "b.other.bias"),
        ("a.other.weight", "b.weight"),
        ("a.other.bias", "b.bias"),
    }
    assert report.parameters == 40


def test_buffers_that_are_not_saved():
    table = torch.randn(6, 6)
    model = module()
    for name, tensor in {"a": table, "b": table, "c": table.t()}.items():
        model.register_buffer(name, tensor, persistent=False)
    assert states(looked_at(model)) == [("half-tied", ("a", "b", "c"))]
    assert looked_at(model).bytes == 144


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(300, 8, padding_idx=0), nn.Linear(8, 300, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


def test_scripted_and_traced_models():
    tokens = torch.tensor([1, 2])
    for scripted in (torch.jit.script(LanguageModel()), torch.jit.trace(LanguageModel(), tokens)):
        report = looked_at(nn.ModuleDict({"inside": scripted}))
        assert states(report) == [("tied", ("inside.embed.weight", "inside.head.weight"))]
        (note,) = looked_at(scripted, tokens).notes
        assert note == (
            "The forward was not looked at: it failed with RuntimeError: "
            "register_forward_pre_hook is not supported on ScriptModules"
        )


def test_slots_with_nothing_in_them():
    model = module()
    model.register_parameter("a", None)
    model.register_buffer("b", None)
    model.register_module("c", None)
    assert looked_at(model).groups == ()


def test_a_turned_parameter_in_two_slots_is_counted_once():
    weight = Parameter(torch.randn(6, 4).t())
    report = looked_at(nn.ParameterDict({"a": weight, "b": weight, "c": Parameter(torch.randn(6, 4)[:, :2])}))
    assert states(report) == [("tied", ("a", "b"))]
    assert (report.parameters, report.bytes, report.bytes_saved) == (24 + 12, 144, 96)


# -- shards -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mesh() -> Iterator[object]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(tensor: Tensor, mesh: object) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, mesh, [Shard(0)])  # type: ignore[arg-type]


def shards(mesh: object) -> dict[str, object]:
    """Say what a look finds of DTensors, in this process."""
    weight = sharded(torch.randn(9, 4), mesh)
    one = Parameter(weight)
    cases = {
        "one": module(a=one, b=one),
        "over-one": module(a=one, b=Parameter(weight.detach())),
        "turned": module(a=one, b=Parameter(weight.t())),
        "and-local": module(a=one, b=Parameter(weight.to_local())),
        "copies": module(a=one, b=Parameter(weight.clone())),
    }
    said = {}
    for name, model in cases.items():
        report = looked_at(model, optimizer=AdamW(model.parameters()))
        said[name] = [(g.state, g.names, g.transforms) for g in report.groups], report.parameters
    for name in ("embed", "head"):
        model = Declares()
        getattr(model, name).weight = Parameter(sharded(model.embed.weight.detach(), mesh))
        said[name] = found(model)
    both = Declares()
    for part in (both.embed, both.head):
        part.weight = Parameter(sharded(part.weight.detach(), mesh))
    said["both"] = found(both)
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(LanguageModel(), mesh=mesh)  # type: ignore[arg-type]
    said["fsdp"] = states(looked_at(model, optimizer=AdamW(model.parameters())))
    return said


HALF = ("half-tied", ("a", "b"), ("identity", "identity"))
EXPECTED = {
    "one": ([("tied", ("a", "b"), ("identity", "identity"))], 36),
    "over-one": ([HALF], 36),
    "turned": ([("half-tied", ("a", "b"), ("identity", ".T"))], 36),
    "and-local": ([HALF], 36),
    "copies": ([], 72),
    "embed": [("declared", "TIE104")],
    "head": [("declared", "TIE104")],
    "both": [("declared", "TIE104")],
    "fsdp": [("tied", ("embed.weight", "head.weight"))],
}


def test_sharded_tensors(mesh):
    assert shards(mesh) == EXPECTED


def _look(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    assert shards(mesh) == EXPECTED
    if rank == 0:  # one process may look alone: the other is not waited for
        looked_at(tied_over(mesh))
    dist.destroy_process_group()


def tied_over(mesh: object) -> nn.Module:
    """Return an embedding and its head, drawn wide, as one shard that nobody else need know of."""
    from torch.distributed.tensor import DTensor, Shard

    model = LanguageModel()
    local = torch.randn(150, 8)
    shard = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)  # type: ignore[arg-type]
    model.embed.weight = model.head.weight = Parameter(shard)
    return model


@pytest.mark.distributed
def test_sharded_tensors_of_two_processes(tmp_path: Path):
    mp.spawn(_look, args=(str(tmp_path),), nprocs=2)
