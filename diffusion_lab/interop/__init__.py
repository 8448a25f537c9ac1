"""Official checkpoints in: the weights of other programs as state dicts of our networks."""
