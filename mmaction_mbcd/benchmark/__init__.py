"""What a step, an epoch and the reading of clips cost, measured side by side."""
