"""Figures and phrases: the one place for how a number, an interval, a verdict and a table are told to people."""
