"""Engines: a light catalog, and one file an engine that builds, loads and proves what it executes."""
