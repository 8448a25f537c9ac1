"""Speed against other programs, measured side by side."""
