"""Continue training a grown model: optimizer states, Trainer checkpoints, the Trainer callback and diagnosis."""
