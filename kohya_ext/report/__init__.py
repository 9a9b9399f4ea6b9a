"""The report of a training run: one page from what the run has left in its output folder and its logs."""
