"""Tools that keep values elsewhere, and plan where: accelerate's."""

from typing import Any

import torch
from torch import Tensor, nn

import tied
from battery.subjects import TIES, ByHand, by_hand, inputs, is_plain
from battery.tool import Act, Tool, both, folder, quietly, trained


def elsewhere(act: Act) -> Act:
    """Keep values elsewhere; what computes a matrix by hand would read it from there, so that it is left in memory."""
    return quietly(lambda model: model(inputs()).detach() if isinstance(model, ByHand) else act(model))


def offloaded(model: nn.Module) -> Tensor:
    import accelerate

    accelerate.cpu_offload(model, execution_device="cpu")
    model(inputs())
    return model(inputs()).detach()


def on_disk(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        accelerate.disk_offload(model, place, execution_device="cpu")
        model(inputs())
        return model(inputs()).detach()


def dispatched(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        devices = {"a": "disk", "b": "cpu", "c": "cpu", "spare": "cpu", "turned": "cpu"}
        made = accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=place, force_hooks=True)
        return made(inputs()).detach()


def loaded_and_dispatched(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        torch.save(model.state_dict(), place / "model.bin")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        made = accelerate.load_checkpoint_and_dispatch(model, str(place / "model.bin"), device_map={"": "cpu"})
        return made(inputs()).detach()


def prepared(model: nn.Module) -> Tensor:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    made, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    return trained(made, optimizer)


def planned(model: nn.Module) -> dict[str, Any]:
    """Plan where everything goes, with too little memory for all of it."""
    import accelerate

    return accelerate.infer_auto_device_map(model, max_memory={"cpu": 400, "disk": 10**6})


def plan(model: nn.Module) -> Tensor:
    return torch.tensor([ord(letter) for letter in str(sorted(planned(model).items()))])


def sent(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        made = accelerate.dispatch_model(model, planned(model), main_device="cpu", offload_dir=place, force_hooks=True)
        return made(inputs()).detach()


def made_empty(model: nn.Module) -> Tensor:
    """Build a model without memory, and load it where a plan says."""
    import accelerate

    with folder() as place:
        torch.save(model.state_dict(), place / "model.bin")
        with accelerate.init_empty_weights():
            empty = type(model)(model.kind)
            if tied.ties(model):
                tied.tie(empty, "b.weight", TIES[model.kind][0])
            elif is_plain(model):
                empty.b.weight = empty.a.weight
        made = accelerate.load_checkpoint_and_dispatch(empty, str(place / "model.bin"), device_map={"": "cpu"})
        return made(inputs()).detach()


def put(name: str, *devices: str) -> Act:
    """Put one tensor elsewhere by accelerate, and back with its value."""

    def act(model: nn.Module) -> list[Tensor]:
        from accelerate.utils import set_module_tensor_to_device

        model = by_hand(model)  # plain sharing is cut
        if isinstance(model, ByHand) and name == "b.weight":
            return both(model)
        value = model.get_parameter(name).detach().clone()
        for device in devices:
            set_module_tensor_to_device(model, name, device, value=None if device == "meta" else value)
        return both(model)

    return quietly(act)


TOOLS = [
    Tool("accelerate", "`cpu_offload`", elsewhere(offloaded), "accelerate"),
    Tool("accelerate", "`disk_offload`", elsewhere(on_disk), "accelerate"),
    Tool("accelerate", "`dispatch_model`, the source on disk", elsewhere(dispatched), "accelerate"),
    Tool("accelerate", "`load_checkpoint_and_dispatch`", quietly(loaded_and_dispatched), "accelerate"),
    Tool("accelerate", "`Accelerator.prepare`", quietly(prepared), "accelerate"),
    Tool("accelerate", "`infer_auto_device_map`", quietly(plan), "accelerate"),
    Tool("accelerate", "the same, and `dispatch_model`", elsewhere(sent), "accelerate"),
    Tool("accelerate", "`init_empty_weights`, then load and dispatch", quietly(made_empty), "accelerate"),
    *(
        Tool(
            "accelerate",
            f"`set_module_tensor_to_device` of the {end}{how}",
            put(name, *devices),
            "accelerate",
            foreign="accelerate's `ValueError`" if end == "target" else "",
            plain_is_wrong=True,
        )
        for end, name in (("source", "a.weight"), ("target", "b.weight"))
        for how, devices in ((", with its value", ("cpu",)), (", to meta and back", ("meta", "cpu")))
    ),
]
