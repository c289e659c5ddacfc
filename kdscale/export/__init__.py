"""A finished student as a folder that timm, transformers or torch alone loads, and its way to the Hub.

The only room that imports huggingface_hub.
"""

from .facts import Evaluation, Facts, Teacher
from .folder import Report, export_network
from .publish import Publication, publish

__all__ = ["Evaluation", "Facts", "Publication", "Report", "Teacher", "export_network", "publish"]
