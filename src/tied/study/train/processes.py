"""The processes that train together, and their devices: accelerate.

Owns: every use of accelerate. Must not know what is trained. Read next: `loop.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tied.study.train.errors import MissingPackageError

if TYPE_CHECKING:
    from accelerate import Accelerator

CLIP_NORM = 1.0


class Processes:
    """One process alone, or those that `accelerate launch` started.

    Law: a batch is dealt out card by card, and each share's gradient is weighted by its size, so that the step is
    that of one process with the whole batch, up to rounding.
    """

    def __init__(self) -> None:
        """Join the others.

        Raises:
            MissingPackageError: accelerate is not installed.
        """
        try:
            from accelerate import Accelerator
        except ImportError:
            raise MissingPackageError("Training needs accelerate: pip install 'tied[train]'") from None
        self.engine: Accelerator = Accelerator()
        self.count, self.number = self.engine.num_processes, self.engine.process_index

    @property
    def are_led_from_here(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.engine.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.engine.device

    @property
    def devices_with_random_numbers(self) -> list[torch.device]:
        """The devices, beside the CPU, whose random numbers a training uses."""
        return [self.device] if self.device.type == "cuda" else []

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Move a model to its device, and let its gradients be averaged over the processes."""
        return self.engine.prepare(model, optimizer)

    def plain(self, model: nn.Module) -> nn.Module:
        """Return the model itself, without what `prepare` put around it."""
        return self.engine.unwrap_model(model, keep_fp32_wrapper=False)

    def share(self, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Deal out a batch.

        Returns:
            This process's share, at least one sample; and the factor for the sum of its losses that makes the
            average over the processes the mean over the batch: zero, where there were fewer samples than processes.
        """
        mine = batch[self.number :: self.count]
        return (mine, self.count / len(batch)) if len(mine) else (batch[:1], 0.0)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        """Take one step with clipped gradients."""
        optimizer.zero_grad()
        self.engine.backward(loss)
        self.engine.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    def total(self, *figures: float) -> list[float]:
        """Add figures up over the processes."""
        if self.count == 1:
            return list(figures)
        mine = torch.tensor(figures, dtype=torch.float64, device=self.device)
        return self.engine.reduce(mine, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]

    def wait(self) -> None:
        """Wait until all are here."""
        self.engine.wait_for_everyone()
