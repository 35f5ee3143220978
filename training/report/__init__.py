"""What is told of a run when it ends: report.json, report.md and report.html."""

from training.report.schema import Report
from training.report.writing import read, write

__all__ = ["Report", "read", "write"]
