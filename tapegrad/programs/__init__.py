"""Recordings that are kept: finished, replayed, differentiated, saved and loaded."""
