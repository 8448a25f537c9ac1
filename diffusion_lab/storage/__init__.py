"""Files: written atomically, locked while in use, and checkpoints."""
