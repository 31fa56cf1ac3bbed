"""Numbers in the types that checkpoints store, as numpy arrays and torch tensors."""
