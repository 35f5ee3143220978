"""The Hugging Face Hub and ModelScope: what stands there, and its files on this machine."""

from training.hubs.listing import Listing, RemoteFile
from training.hubs.wanted import Unreachable, Wanted

__all__ = ["Listing", "RemoteFile", "Unreachable", "Wanted"]
