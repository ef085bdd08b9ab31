"""A local page on which a picture of one's own is answered by several models side by side: `gain demo`."""
