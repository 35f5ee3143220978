"""What both ends of the pipe to llama.cpp's process must know."""

from __future__ import annotations

STOP = b'"stop"\n'
# Tokens decoded at once, and rows of logits sent at once: 256 x 152k x 4 bytes = 155 MB at most.
BLOCK = 256
