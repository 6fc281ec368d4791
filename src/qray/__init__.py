"""qray: which quantized form of a video-regression model to run where, and what it costs in accuracy."""

__version__ = "0.1.0"
