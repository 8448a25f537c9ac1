"""What a command does with its configuration: train, sample, compare, measure, import."""
