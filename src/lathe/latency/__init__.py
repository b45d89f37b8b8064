"""Predict latency from a shape, a device and a workload, and calibrate the device from measurements."""
