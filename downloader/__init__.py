"""Custody: fetches the file past the fence, proves it while it streams, stores it, announces the end state."""
