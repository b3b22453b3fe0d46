"""Tells people and systems what the public events say. It decides nothing about a conversion."""
