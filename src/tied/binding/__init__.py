"""The hands: declaring ties, keeping them and undoing them.

Owns: every change of a module. Must not look for sharing that nobody declared, nor open files.
"""

from tied.binding.adopt import adopt as adopt, alias as alias
from tied.binding.bind import bind as bind
from tied.binding.guard import guard as guard
from tied.binding.load_state_dict import load_state_dict as load_state_dict
from tied.binding.retie import Mended as Mended, retie as retie
from tied.binding.tie import tie as tie
from tied.binding.tie_layers import schedule as schedule, tie_layers as tie_layers
from tied.binding.tying import tying as tying
from tied.binding.untie import untie as untie
from tied.ledger import Tie as Tie, ties as ties
