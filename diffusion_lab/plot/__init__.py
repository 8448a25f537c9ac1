"""Images of samples, charts, and the plots of the pitfalls of score matching."""
