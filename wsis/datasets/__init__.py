"""Data sets: `--data X` selects the first class in the `__all__` of `X.py` in this folder."""
