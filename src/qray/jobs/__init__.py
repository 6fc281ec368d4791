"""Runs as jobs on a cluster: sent, followed, stopped, and their results fetched, through the dashboard's port alone."""
