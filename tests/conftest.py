"""What all tests share: quiet hypothesis deadlines (two shared cores have no steady clock) and few threads."""

from __future__ import annotations

import os

import hypothesis
import torch

hypothesis.settings.register_profile("kdscale", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("kdscale")
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
