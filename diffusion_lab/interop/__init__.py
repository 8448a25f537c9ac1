"""Import official checkpoints: convert weights of other programs to state dicts of our networks."""
