"""Object proposals: made from images, converted from other tools' files, stored on disk."""
