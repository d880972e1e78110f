"""From a Hugging Face model to a graph that means the same, and the source model to hold it against."""
