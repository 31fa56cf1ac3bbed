"""Training goes on: optimizer states, Trainer checkpoints, the callback and the diagnosis of what was trained."""
