"""What the sites of a model cost: kernels timed by themselves, learned from such, or estimated."""
