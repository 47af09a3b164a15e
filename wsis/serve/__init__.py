"""A page for labelling and looking: labels on disk, what comes next, retraining."""
