"""tied: parameter sharing in PyTorch, declared in one line, and kept.

>>> import tied, torch
>>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 5), "decoder": torch.nn.Linear(5, 3)})
>>> with tied.tying(model) as m:
...     m.decoder.weight = m.encoder.weight.T
>>> print(*tied.ties(model))
decoder.weight = encoder.weight.T
"""

from tied.algebra import Expression as Expression, cat as cat, kron as kron, parse as parse, ref as ref, stack as stack
from tied.binding import (
    Tie as Tie,
    load_state_dict as load_state_dict,
    retie as retie,
    tie as tie,
    tie_layers as tie_layers,
    ties as ties,
    tying as tying,
    untie as untie,
)
from tied.errors import (
    AddressError as AddressError,
    ConflictError as ConflictError,
    CycleError as CycleError,
    DeviceError as DeviceError,
    DtypeError as DtypeError,
    InverseError as InverseError,
    KindError as KindError,
    ParseError as ParseError,
    ShapeError as ShapeError,
    SourceGoneError as SourceGoneError,
    TieError as TieError,
    TwiceTiedError as TwiceTiedError,
    WriteError as WriteError,
)

__version__ = "0.1.0"
