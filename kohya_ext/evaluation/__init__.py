"""Judging a model by its images: prompts as the guide asks for them, and sheets of what models make of them."""
