"""Imported by the fork server alone, before it has children: signals that stop a run are the trainer's to answer.

A scheduler sends SIGTERM to every process of a job. The trainer finishes its step and saves, for which it needs its
workers, and these do not outlive the server that they were forked from.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
