"""From a folder in VOC layout to batches: its files checked and listed in a manifest, then loaded as samples."""
