"""What `on_a_gpu.py` measures, a child process a row."""
