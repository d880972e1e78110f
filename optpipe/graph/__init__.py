"""What passes rewrite: FX graphs without a batch dimension, their weights, and how the reference runs them."""
