"""Accuracy, latency, memory, INT8 coverage, and the host they were taken on."""
