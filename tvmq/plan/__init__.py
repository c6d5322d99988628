"""Decide, before anything is rewritten, what each site and each value becomes."""
