"""FPQ's configs, installed as data."""
