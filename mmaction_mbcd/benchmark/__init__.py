"""What a training step and an epoch cost: arithmetic, time, memory and waits."""
