"""What passes rewrite: FX graphs over lazy weights, and how the reference runs them."""
