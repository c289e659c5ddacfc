"""The loop and everything about time, ranks, disks and signals. No method is known here by name."""
