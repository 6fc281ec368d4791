"""What OUT proves: its records, the statistics on them, and the rows. The only caller of statistics; needs no Ray."""
