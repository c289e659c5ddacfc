"""How a run ends before its end, and how all ranks come to know of it."""
