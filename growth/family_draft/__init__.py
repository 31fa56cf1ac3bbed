"""Draft the table of a family from its stock class, and prove it on small random models."""
