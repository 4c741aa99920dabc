"""Models that share by plain torch, in every way that people found: the subjects of saving and loading.

Each builder gives a model from a seed; two with different seeds differ in every value, and share alike.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


def one_parameter_twice() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
    model.head.weight = model.embed.weight
    return model


def one_parameter_in_three() -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
    model.b.weight = model.c.weight = model.a.weight
    model.c.bias = model.b.bias
    return model


def one_module_twice() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    model["b"] = nn.Sequential(model.a, nn.ReLU(), model.a)
    return model


def transposed_alias() -> nn.Module:
    model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())
    return model


def data_alias() -> nn.Module:
    model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
    model.decoder.weight.data = model.encoder.weight.data.t()
    return model


def same_memory() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.b.weight = nn.Parameter(model.a.weight.detach())
    return model


def rows_of_another() -> nn.Module:
    model = nn.ModuleDict({"head": nn.Linear(3, 4, bias=False), "embed": nn.Embedding(7, 3)})
    model.head.weight = nn.Parameter(model.embed.weight[2:6])
    return model


def every_other_column() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(6, 4, bias=False)})
    model.b.weight = nn.Parameter(model.a.weight[:, ::2].t())
    return model


def half_of_each() -> nn.Module:
    buffer = torch.randn(12)
    return nn.ParameterDict({"a": nn.Parameter(buffer[:8]), "b": nn.Parameter(buffer[4:])})


def fused_buffer() -> nn.Module:
    buffer = torch.randn(30)
    model = nn.ModuleDict({"a": nn.Linear(5, 3, bias=False), "b": nn.Linear(3, 5, bias=False)})
    model.a.weight, model.b.weight = nn.Parameter(buffer[:15].view(3, 5)), nn.Parameter(buffer[15:].view(5, 3))
    return model


def interleaved_columns() -> nn.Module:
    matrix = torch.randn(4, 6)
    return nn.ParameterDict({"a": nn.Parameter(matrix[:, :3]), "b": nn.Parameter(matrix[:, 3:])})


def shared_buffer() -> nn.Module:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b": nn.BatchNorm1d(4)})
    for name, buffer in list(model.a.named_buffers()):
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(4))
        model.b._buffers[name] = buffer
    model.a.num_batches_tracked.fill_(int(torch.randint(100, ())))
    return model


def parameter_and_its_buffer() -> nn.Module:
    model = nn.Linear(4, 4)
    model.register_buffer("seen", model.weight.data[1:3])
    return model


def strided() -> nn.Module:
    model = nn.Linear(4, 6)
    model.weight = nn.Parameter(torch.randn(4, 6).t())
    model.register_buffer("every", torch.randn(10)[::2])
    model.register_buffer("spread", torch.randn(3, 1).expand(3, 4))
    return model


def conjugate() -> nn.Module:
    model = nn.Module()
    model.plain = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    model.conjugate = nn.Parameter(model.plain.detach().conj())
    model.imaginary = nn.Parameter(model.plain.detach().conj().imag)
    return model


def empty_and_single() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(0, 3))
    model.scale = nn.Parameter(torch.randn(()))
    model.register_buffer("count", torch.randint(99, ()))
    model.register_buffer("none", torch.empty(0, 4, dtype=torch.bool))
    return model


def not_persistent() -> nn.Module:
    model = nn.Linear(3, 3)
    model.register_buffer("cache", torch.zeros(5), persistent=False)
    return model


def weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def tensor_as_extra_state() -> nn.Module:
    class Extra(nn.Linear):
        steps: Tensor

        def get_extra_state(self) -> Tensor:
            return self.steps

        def set_extra_state(self, state: Tensor) -> None:
            self.steps = state.clone()

    model = Extra(3, 3)
    model.steps = torch.randint(1000, (2,))
    return model


def lstm() -> nn.Module:
    return nn.LSTM(3, 4, num_layers=2)


BUILDERS: list[Builder] = [
    one_parameter_twice,
    one_parameter_in_three,
    one_module_twice,
    transposed_alias,
    data_alias,
    same_memory,
    rows_of_another,
    every_other_column,
    half_of_each,
    fused_buffer,
    interleaved_columns,
    shared_buffer,
    parameter_and_its_buffer,
    strided,
    conjugate,
    empty_and_single,
    not_persistent,
    weight_norm,
    tensor_as_extra_state,
    lstm,
]


def build(builder: Builder, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return builder()


def unique_bytes(model: nn.Module) -> int:
    """Return the bytes of memory that the state dict covers, counted byte by byte."""
    covered: set[tuple[int, int]] = set()
    for tensor in model.state_dict().values():
        places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size() or 1)
        offsets = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten().tolist()
        start, width = tensor.untyped_storage().data_ptr(), tensor.element_size()
        covered |= {(start + place * width + byte, 0) for place in offsets for byte in range(width)}
    return len(covered)


def memory(model: nn.Module) -> list[set[str]]:
    """Return which names of the state dict overlap in memory: plain arithmetic, element by element."""
    owners: dict[int, set[str]] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.numel():
            continue
        places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
        for place in places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten().tolist():
            address = tensor.untyped_storage().data_ptr() + place * tensor.element_size()
            owners.setdefault(address, set()).add(name)
    groups: list[set[str]] = []
    for names in owners.values():
        if len(names) > 1 and names not in groups:
            groups.append(names)
    return groups
