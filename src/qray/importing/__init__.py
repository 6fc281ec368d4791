"""A model of the user's own, made into a folder that a study can name: `qray import`."""
