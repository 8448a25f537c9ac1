"""Pictures of samples, charts of numbers, and the figures of the pitfalls."""
