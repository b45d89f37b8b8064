"""Measure latency: the same workloads and the same word as its prediction."""
