"""Inside the checkout's own Python: a training script run on tensors without contents, and what is seen on the way."""
