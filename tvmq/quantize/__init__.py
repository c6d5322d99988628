"""Choose the numbers: scales of activations, integer weights, corrected biases."""
