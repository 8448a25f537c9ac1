"""From a command line to a plain configuration: composition, checks, and building objects from it."""
