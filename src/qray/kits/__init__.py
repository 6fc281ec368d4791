"""Kits: artifacts carried to devices that no cluster reaches, measured there, and what comes back."""
