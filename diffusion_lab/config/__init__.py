"""From a command line to a plain configuration and the objects built from it."""
