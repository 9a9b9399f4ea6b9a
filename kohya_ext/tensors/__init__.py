"""Files of named tensors, known by their headers: what is in them and where, without torch and without reading them."""
