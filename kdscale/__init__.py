"""kdscale: one engine on which every distillation method is one short file."""

__version__ = "0.1.0"
