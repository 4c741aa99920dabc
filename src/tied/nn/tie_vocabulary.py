"""One vocabulary for encoder, decoder and head.

Owns: `tie_vocabulary`. Must not implement tying: that is `tied.tie`. Read next: `siamese.py`.
"""

from __future__ import annotations

from torch import nn

from tied.algebra import Address, Expression, Ref
from tied.algebra.parser import parse_address
from tied.binding import Tie, tie
from tied.binding.slots import ModuleTree
from tied.binding.tie import unwrapped
from tied.errors import KindError, ShapeError, during


def tie_vocabulary(model: nn.Module, encoder: str, decoder: str, head: str) -> tuple[Tie, ...]:
    """Share one matrix between the encoder's embedding, the decoder's and the head: three-way tying.

    Law: `decoder.weight == encoder.weight[:rows]`, `head.weight == encoder.weight[:rows]`, exact, where `rows`
    is what each of them has: a vocabulary that was padded on one side only fits.

    A fresh `nn.Embedding` has entries of variance 1, which is right for an input of unit variance and far too
    large for a head: a model tied like this starts with a cross-entropy of tens instead of `log(words)`. Draw
    the shared matrix anew with a deviation of `width**-0.5` or smaller. The row at `padding_idx` gets no
    gradient from the lookups, but it does from the head.

    Args:
        model: Changed in place, and only if every check passes.
        encoder: The address of the embedding that owns the matrix; no other has more rows.
        decoder: The address of the decoder's embedding.
        head: The address of the layer that gives the logits.

    Returns:
        The two ties.

    Raises:
        AddressError: an address names nothing.
        KindError: one of the three has no matrix called `weight`.
        ShapeError: widths differ, or the encoder's vocabulary is not the largest.

    Example:
        >>> model = nn.ModuleDict({"src": nn.Embedding(10, 4), "tgt": nn.Embedding(10, 4), "out": nn.Linear(4, 9)})
        >>> print(*tie_vocabulary(model, "src", "tgt", "out"), sep=", ")
        tgt.weight = src.weight, out.weight = src.weight[:9]

    Source:
        Press & Wolf 2017, arXiv:1608.05859, section 3 (three-way weight tying).
    """
    with during(f"tie_vocabulary(model, {encoder!r}, {decoder!r}, {head!r})"):
        model = unwrapped(model)
        tree = ModuleTree(model)
        owner, *targets = (_matrix(tree, address) for address in (encoder, decoder, head))
        return tie(model, {target: _rows(tree, owner, target) for target in targets})


def _matrix(tree: ModuleTree, text: str) -> Address:
    address = (*parse_address(text, tree), "weight")
    if "weight" not in (tree.names(address[:-1]) or ()) or tree.slot(address).tensor.dim() != 2:
        raise KindError(
            f"'{text}' has no matrix called 'weight'.",
            found=type(tree.slot(address[:-1]).owner).__name__,
            expected="an nn.Embedding, an nn.Linear, or another module with a weight of shape (words, width)",
            fix="name the module: tie_vocabulary(model, 'encoder.embed', 'decoder.embed', 'head')",
        )
    return address


def _rows(tree: ModuleTree, owner: Address, target: Address) -> Expression:
    """Return the owner's matrix, or as many of its rows as the target has."""
    has, wants = (tree.slot(address).tensor.shape for address in (owner, target))
    if wants[0] > has[0]:
        raise ShapeError(
            f"'{'.'.join(target[:-1])}' has more words than the encoder.",
            found=f"{wants[0]} words, and {has[0]} in '{'.'.join(owner[:-1])}'",
            expected="the largest vocabulary in the encoder",
            fix="give the encoder's embedding as many words",
        )
    return Ref(owner) if wants[0] == has[0] else Ref(owner)[: wants[0]]
