"""LoRA files: what a fine-tune changed, as low-rank factors (`extract`), and fewer of them (`resize`)."""
