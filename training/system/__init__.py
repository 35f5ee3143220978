"""This machine, files, logs, signals, processes, and how the packages come onto it, where setup.sh starts. It has no
face: import its modules.
"""
