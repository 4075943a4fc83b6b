"""Images from where they lie to batches of views."""
