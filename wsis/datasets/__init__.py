"""Data sets: `--data X` is the class that `X.py` here lists first in its `__all__`."""
