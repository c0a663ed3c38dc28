"""How a stage runs: parameters, artifacts, resuming, devices, several processes, errors, progress.

Nothing here changes what is computed, so no stage depends on it. Imports no other room.
"""
