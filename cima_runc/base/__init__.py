"""What every part stands on: errors, limits, text, files. The standard library only."""
