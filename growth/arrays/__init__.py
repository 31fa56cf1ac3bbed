"""Numbers in the types of checkpoints, as numpy arrays and torch tensors."""
