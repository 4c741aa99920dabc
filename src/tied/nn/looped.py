"""One or few blocks, run many times.

Owns: `Looped`. Must not implement tying, nor the patterns: those are `tied.tie_layers`. Read next: `unrolled.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import Ref
from tied.binding import Tie, schedule, tie, tie_layers, untie
from tied.binding.tie_layers import Pattern
from tied.errors import KindError, ShapeError, during
from tied.ledger import links
from tied.nn.siamese import twin


class Looped(nn.Module):
    """A stack of `depth` layers made of few blocks; what the layers share is stored, counted and stepped once.

    Law: the stack computes what `depth` layers computed whose shared weights are equal, exact; a layer's
    matrix with `rank > 0` is `block.weight + left @ right`, and `left` starts at zero.

    The first layer of each kind is the block itself. The others are copies of it that own only what is
    private: buffers, parameters that match `private`, and the low-rank differences. Sharing saves memory,
    not time. Norms and biases are cheap and often better private.

    The first layer of a kind has no difference: it is the shared matrix, so that the block keeps its names and its
    file. Nothing is lost by it: layers that all differ by rank r from one matrix differ by rank 2r from the first.

    A part that has a `layer_idx`, by which attention of transformers finds its cache, is given that of its layer.

    Any module is a block: a transformer layer, a convolution, an MLP. Further arguments of `forward` are handed
    to every layer. If layers return tuples, the first entry goes on to the next layer, and each other entry is
    collected over the layers: `(x, attention)` becomes `(x, (attention_0, attention_1, ...))`.

    Args:
        blocks: One module, or a list of them.
        depth: How many layers there are in all, at least as many as blocks.
        pattern: Which layer is which block; see `tied.tie_layers`.
        private: Patterns of addresses that each layer keeps for itself, such as `["*.norm*", "*.bias"]`.
            Private parameters start as copies of the block's.
        rank: Of the difference that each layer but the first of its kind adds to every shared matrix (and to
            every shared kernel, seen as a matrix); 0 for none. At most the smaller side of a matrix is used.

    Raises:
        KindError: a block is no module, or comes twice; or there is no such pattern.
        ShapeError: `depth`, `rank` or the number of blocks does not fit.
        AddressError: a pattern of `private` matches nothing that would be shared.

    Example:
        >>> import torch
        >>> model = Looped(nn.TransformerEncoderLayer(8, 2, 16), depth=6, private=["*.norm*"], rank=1)
        >>> model(torch.zeros(3, 2, 8)).shape
        torch.Size([3, 2, 8])
        >>> [name for name, _ in model.named_parameters() if name.startswith("layers.5.lin")]
        ['layers.5.linear1.weight_delta.left', 'layers.5.linear1.weight_delta.right', \
'layers.5.linear2.weight_delta.left', 'layers.5.linear2.weight_delta.right']

    Source:
        Dehghani et al. 2019, arXiv:1807.03819 (one block); Takase & Kiyono 2021, arXiv:2104.06022 (patterns);
        Bae et al. 2025, arXiv:2410.20672, section 2.2 (low-rank differences).
    """

    def __init__(
        self,
        blocks: nn.Module | Sequence[nn.Module],
        depth: int,
        *,
        pattern: Pattern = "cycle",
        private: Sequence[str] = (),
        rank: int = 0,
    ) -> None:
        super().__init__()
        unique: list[Any] = [*blocks] if isinstance(blocks, Sequence | nn.ModuleList) else [blocks]
        with during(f"Looped({', '.join(type(b).__name__ for b in unique)}, depth={depth!r}, pattern={pattern!r})"):
            numbers = _checked(unique, depth, pattern, rank)
            _check_private(private)
            self.pattern, self.rank = pattern, rank
            self.layers = nn.ModuleList(
                unique[number] if number not in numbers[:layer] else twin(unique[number])
                for layer, number in enumerate(numbers)
            )
            _number(self.layers)
            made = tie_layers(self, "layers", pattern=pattern, unique=len(unique), private=private)
            self._part_private(numbers)
            for each in made if rank else ():
                _relax(self, each, rank)

    def _part_private(self, numbers: list[int]) -> None:
        """Give every copy Parameters of its own in place of those of the block that were not tied."""
        twins = [layer for place, layer in enumerate(self.layers) if numbers[place] in numbers[:place]]
        for layer in twins:
            copies: dict[int, Any] = {}
            for module in layer.modules():
                for name, parameter in module._parameters.items():
                    if name not in links(module):
                        setattr(module, name, copy.deepcopy(parameter, copies))

    def forward(self, x: Any, *arguments: Any, **options: Any) -> Any:
        """Run all layers; see the class for tuples.

        Args:
            x: What the first layer takes.
            *arguments: Handed to every layer, after `x`.
            **options: Handed to every layer.

        Raises:
            KindError: some layers return tuples and others do not.
        """
        rests: list[tuple[Any, ...] | None] = []
        for layer in self.layers:
            output = layer(x, *arguments, **options)
            x, *rest = output if isinstance(output, tuple) else (output,)
            rests.append(tuple(rest) if isinstance(output, tuple) else None)
        collected = [rest for rest in rests if rest is not None]
        if not collected:
            return x
        if len(collected) < len(rests) or len({len(rest) for rest in collected}) > 1:
            shown = ["no tuple" if rest is None else f"{len(rest) + 1} entries" for rest in rests]
            with during("Looped.forward(...)"):
                raise KindError(
                    "The blocks do not return the same kind of output.",
                    found=", ".join(dict.fromkeys(shown)),
                    expected="a tensor from every block, or tuples of one length",
                    fix="wrap the blocks so that they return the same",
                )
        return (x, *zip(*collected, strict=True))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"pattern='{self.pattern}'" + (f", rank={self.rank}" if self.rank else "")


def _number(layers: nn.ModuleList) -> None:
    """Tell parts that know which layer they stand in, as those of transformers do for their cache, where they stand."""
    for place, layer in enumerate(layers):
        for part in layer.modules():
            if isinstance(vars(part).get("layer_idx"), int):
                vars(part)["layer_idx"] = place


class Delta(nn.Module):
    """A low-rank difference `left @ right`, zero at the start."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = matrix.shape[0], matrix[0].numel()
        rank = min(rank, rows, columns)
        self.left = Parameter(matrix.new_empty(rows, rank))
        self.right = Parameter(matrix.new_empty(rank, columns))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set `left` to zero; draw `right` within `±1/sqrt(columns)`."""
        nn.init.zeros_(self.left)
        bound = self.right.shape[1] ** -0.5
        nn.init.uniform_(self.right, -bound, bound)

    def extra_repr(self) -> str:
        """Show the shape of the difference and its rank."""
        return f"{self.left.shape[0]}, {self.right.shape[1]}, rank={self.left.shape[1]}"


def _relax(looped: Looped, made: Tie, rank: int) -> None:
    """Add a low-rank difference to a tie of one matrix to another."""
    owner, name = looped.get_submodule(".".join(made.address[:-1])), made.address[-1]
    matrix = getattr(owner, name)
    if matrix.dim() < 2 or not matrix.numel() or not matrix.is_floating_point():
        return
    owner.add_module(f"{name}_delta", Delta(matrix.detach(), rank))
    place = (*made.address[:-1], f"{name}_delta")
    difference = Ref((*place, "left")) @ Ref((*place, "right"))
    untie(looped, ".".join(made.address))
    tie(looped, made.target, made.source + (difference if matrix.dim() == 2 else difference.reshape(*matrix.shape)))  # type: ignore[attr-defined]


# -- checks -----------------------------------------------------------------------------------------


def _checked(blocks: list[Any], depth: Any, pattern: str, rank: Any) -> list[int]:
    """Return for each layer the number of its block."""
    wrong = [type(block).__name__ for block in blocks if not isinstance(block, nn.Module)]
    if wrong or not blocks or len({id(block) for block in blocks}) < len(blocks):
        raise KindError(
            "The blocks are not different modules.",
            found=wrong[0] if wrong else "one block twice" if blocks else "no blocks",
            expected="a module, or a list of different ones",
            fix="Looped(block, depth=12); a pattern says which layer is which block",
        )
    if type(depth) is not int or type(rank) is not int or depth < len(blocks) or rank < 0:
        raise ShapeError(
            "The depth or the rank does not fit.",
            found=f"depth={depth!r} and rank={rank!r} for {len(blocks)} block{'s' * (len(blocks) > 1)}",
            expected=f"a depth of at least {len(blocks)}, and a rank of at least 0, both whole numbers",
            fix=f"depth={2 * len(blocks)}",
        )
    try:
        return schedule(pattern, depth, len(blocks))
    except ShapeError as error:
        raise ShapeError(
            f"The number of blocks does not fit the pattern '{pattern}' and {depth} layers.",
            found=f"{len(blocks)}",
            expected=error.expected,
            fix="another depth, pattern, or number of blocks",
        ) from None


def _check_private(private: object) -> None:
    if isinstance(private, str) or not isinstance(private, Iterable):  # a text's letters would be patterns
        raise KindError(
            "private is a list of patterns.",
            found=f"private={private!r}",
            expected="a list of texts",
            fix=f"private=[{private!r}]",
        )
