"""Plan, run and resume a study on Ray."""
