"""Ways to make a model deployable: one file per engine or method, one protocol (build, load)."""
