"""Growing on many ranks, and folders of torch.distributed.checkpoint."""
