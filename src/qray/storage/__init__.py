"""Where data sets and OUT lie when that is no folder."""
