"""Shadow knowledge distillation (SHAKE): a shadow that follows the teacher trades knowledge with the student both ways.

One kind, a file for each place of the shadow: heads on the student's own features (``features``), the distillation token
(``token``), a path or a network of its own (``own_path``), and the frozen teacher's features, as the published program has
it (``code``). ``distiller`` holds what all of them minimise.
"""

from .value import Shake

__all__ = ["Shake"]
