"""Parts of networks that more than one method uses."""
