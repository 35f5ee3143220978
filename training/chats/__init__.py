"""Exports of chat programs become conversations that teach."""

from training.chats.conversations import Conversation, Cutting
from training.chats.picture import Picture
from training.chats.reading import NAMES, Wanted, kind_of, read

__all__ = ["NAMES", "Conversation", "Cutting", "Picture", "Wanted", "kind_of", "read"]
