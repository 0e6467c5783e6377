"""Layer by layer: the quadratic error of a layer's outputs, from the inputs that it gets."""
