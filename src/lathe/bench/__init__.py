"""Measure the latency of shapes and checkpoints, through one backend or another, and compare it with predictions."""
