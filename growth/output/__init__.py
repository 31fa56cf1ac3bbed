"""Values become a checkpoint folder, which appears whole or not at all, or a model in memory."""
