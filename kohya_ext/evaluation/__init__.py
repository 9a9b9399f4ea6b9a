"""Judging a model by its pictures: prompts as the guide asks for them, and sheets of what models make of them."""
