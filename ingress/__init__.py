"""The HTTP edge: authenticates a callback, reads it into a report, publishes it. It fetches and stores nothing."""
