"""The loop and everything about time, ranks, disks and signals. No method is known here by name.

``run`` takes a recipe through its phases, ``stage`` makes one of them, ``loop`` takes it through its steps, and ``upkeep`` does
what is due between them. ``parallel`` is what the ranks are, ``checkpoint`` what lies on the disk, ``faults`` how a run ends
before its end, ``stored`` what teachers have said before, and ``parity`` one recipe under every back-end.
"""
