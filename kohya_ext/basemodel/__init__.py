"""The model that a training starts from: fetched whole or not at all, or built by exchanging a checkpoint's VAE."""
