"""An EMA of another length from the files that a run has saved, after the run."""
