"""Pictures: read whatever a camera wrote, draw masks over it, and COCO's panoptic maps."""
