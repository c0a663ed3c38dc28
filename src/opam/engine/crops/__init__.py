"""Crops of photographs, in batches and ahead of time, cut on the CPU or in a GPU's memory."""
