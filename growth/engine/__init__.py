"""A plan becomes values: the gather and the scaling of tensors, a block of rows at a time."""
