"""Several processes: sharded sources and files of sharded models. The only importer of torch.distributed."""

from tied.distributed.checkpoint import save as save
from tied.distributed.gather import whole as whole
from tied.distributed.shards import gathered as gathered, is_first as is_first, spread as spread
