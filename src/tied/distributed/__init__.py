"""What people who train in several processes call: checkpoints that hold each tensor once.

Owns: what is built on `torch.distributed`. Must not be needed by one process alone: see `sharding.py`.
"""

from tied.distributed.checkpoint import save as save
