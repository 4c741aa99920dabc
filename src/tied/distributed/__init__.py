"""Several processes: reading a source that another FSDP2 group has sharded. The only importer of torch.distributed."""

from tied.distributed.gather import whole as whole
