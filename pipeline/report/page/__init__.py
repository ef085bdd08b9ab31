"""Pages that open in a browser from disk, offline: the evaluation of a run. Templates, styles and scripts beside."""
