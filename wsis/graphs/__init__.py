"""Trained networks from an image to its objects, in steps that torch.export follows."""
