"""A recipe and a source become a plan: what happens to every tensor, known before one is read."""
