"""tied: parameter sharing in PyTorch, declared in one line, and kept.

Names are loaded when they are first used, so that `tied --help` answers without torch.

>>> import tied, torch
>>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 5), "decoder": torch.nn.Linear(5, 3)})
>>> with tied.tying(model) as m:
...     m.decoder.weight = m.encoder.weight.T
>>> print(*tied.ties(model))
decoder.weight = encoder.weight.T
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tied.lazy import lazy_names

if TYPE_CHECKING:
    from tied import files as files, nn as nn
    from tied.algebra import (
        Expression as Expression,
        cat as cat,
        kron as kron,
        parse as parse,
        ref as ref,
        stack as stack,
    )
    from tied.binding import (
        Tie as Tie,
        adopt as adopt,
        alias as alias,
        guard as guard,
        load_state_dict as load_state_dict,
        retie as retie,
        tie as tie,
        tie_layers as tie_layers,
        ties as ties,
        tying as tying,
        untie as untie,
    )
    from tied.checking.check import check as check
    from tied.errors import (
        AddressError as AddressError,
        ConflictError as ConflictError,
        CycleError as CycleError,
        DeviceError as DeviceError,
        DtypeError as DtypeError,
        FileError as FileError,
        InverseError as InverseError,
        KindError as KindError,
        ParseError as ParseError,
        ShapeError as ShapeError,
        SharingError as SharingError,
        SourceGoneError as SourceGoneError,
        TieError as TieError,
        TieWarning as TieWarning,
        TransformError as TransformError,
        TwiceTiedError as TwiceTiedError,
        WriteError as WriteError,
    )
    from tied.files.models.load import Loaded as Loaded, load as load
    from tied.files.models.save import save as save
    from tied.proving.tension import tension as tension
    from tied.proving.verify import verify as verify
    from tied.reporting.facts import Finding as Finding, Group as Group
    from tied.reporting.report import Report as Report

__version__ = "0.1.0"

_HOMES = {
    "tied": "files nn",
    "tied.binding": "tying tie tie_layers ties untie retie adopt alias guard load_state_dict Tie",
    "tied.checking.check": "check",
    "tied.reporting.facts": "Finding Group",
    "tied.reporting.report": "Report",
    "tied.algebra": "Expression cat kron parse ref stack",
    "tied.files.models.save": "save",
    "tied.files.models.load": "load Loaded",
    "tied.proving.tension": "tension",
    "tied.proving.verify": "verify",
    "tied.errors": "TieError AddressError ConflictError CycleError DeviceError DtypeError FileError InverseError "
    "KindError ParseError ShapeError SharingError SourceGoneError TransformError TwiceTiedError "
    "WriteError TieWarning",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
