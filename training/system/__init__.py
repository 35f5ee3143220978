"""This machine: what it must have, and how the packages come onto it. setup.sh starts here."""
