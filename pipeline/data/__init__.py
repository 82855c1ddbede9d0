"""From a folder, a zip or a name to batches."""
