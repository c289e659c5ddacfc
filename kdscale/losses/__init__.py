"""Every published loss as a pure function of tensors, a file a family.

A row loss returns ``[N]``, one number a classified thing, and the caller's task reduces it; a loss that couples samples
returns a scalar. Nothing here detaches a target unless its docstring says so.
"""
