"""The operator's command line, `wavekeep`."""
