"""A folder of training images and its captions: made from file names, edited in bulk, taken back, audited."""
