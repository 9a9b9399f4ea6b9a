"""The page of a model, for CivitAI and Hugging Face: from what its file says of itself and what its author adds."""
