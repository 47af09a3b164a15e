"""Proposals: regions that may be objects. Make them from an image, read other tools' files, store them."""
