"""The battery: what people's tools do to a model, as functions of a model, and the models that they are tried on.

Each `Tool` is tried on a tied model and on its oracle. Both go through the same tool; what it returns has to be the
same, or the tied model raises an error of ours.
"""

from battery import adapters, changes, copies, counting, devices, graphs, parts, training
from battery.subjects import TIES as TIES, Subject as Subject
from battery.tool import Tool as Tool

TOOLS = [
    *copies.TOOLS,
    *parts.TOOLS,
    *training.TOOLS,
    *changes.TOOLS,
    *graphs.TOOLS,
    *devices.TOOLS,
    *adapters.TOOLS,
    *counting.TOOLS,
]
