"""Several runs side by side: what their folders say, one table, and one page."""
