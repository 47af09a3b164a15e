"""From pixels and tags to hints of where objects are; no gradients are kept."""
