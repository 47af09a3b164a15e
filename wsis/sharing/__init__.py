"""Shared models: folders with one network of a run, also as archives, by URL and on a hub."""
