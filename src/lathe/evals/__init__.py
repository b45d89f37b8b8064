"""Evaluate decoders."""
