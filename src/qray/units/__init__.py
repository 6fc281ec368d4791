"""qray's units, a file each kind: what their outcome depends on, how they are started, done and recorded."""
