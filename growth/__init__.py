"""growth: start a larger language model from a smaller one, exactly."""
__version__ = "0.1.0"
