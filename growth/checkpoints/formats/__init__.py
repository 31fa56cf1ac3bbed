"""Formats of checkpoint folders: one module each, with one subclass of `SourceFormat`."""
