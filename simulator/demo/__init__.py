"""The demo: a dozen conversions of three vendors, watched from their callbacks to their end states."""
