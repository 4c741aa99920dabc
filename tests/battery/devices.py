"""Tools that keep values elsewhere, and plan where: accelerate's."""

import torch
from torch import Tensor, nn

from battery.subjects import ByHand, inputs
from battery.tool import Act, Tool, folder, quietly, trained


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


TOOLS = [
    Tool("accelerate", "`cpu_offload`", elsewhere(offloaded), "accelerate"),
    Tool("accelerate", "`disk_offload`", elsewhere(on_disk), "accelerate"),
    Tool("accelerate", "`dispatch_model`, the source on disk", elsewhere(dispatched), "accelerate"),
    Tool("accelerate", "`load_checkpoint_and_dispatch`", quietly(loaded_and_dispatched), "accelerate"),
    Tool("accelerate", "`Accelerator.prepare`", quietly(prepared), "accelerate"),
]
