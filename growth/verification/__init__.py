"""Checks that a grown checkpoint computes the same function and holds the same bits."""
