"""Sources of data, each brought into a folder in VOC layout: drawn, downloaded, or copied."""
