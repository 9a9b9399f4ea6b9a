"""Validation: which noise and timestep a held-out image gets, what the losses say, and the records of a run."""
