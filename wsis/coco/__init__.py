"""COCO's files: records checked while they are parsed, and masks that are safe to decode."""
