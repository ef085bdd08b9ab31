"""From somewhere to a folder in VOC layout."""
