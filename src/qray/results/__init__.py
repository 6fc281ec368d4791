"""The table, its statistics, and how it is shown."""
