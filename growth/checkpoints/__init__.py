"""Source checkpoints of every format, opened and validated in one place (`open`)."""
