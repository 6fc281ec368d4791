"""Experiment trackers: a finished run, as others keep theirs. Beside results, because a tracker is another machine."""
