"""What all verbs share: names, layered settings, help and one-line errors."""
