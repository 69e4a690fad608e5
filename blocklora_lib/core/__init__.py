"""The ground: strict settings, files, seeds, devices and folders.

Knows nothing of the subject, and no other room. Only seeding and devices need torch.
"""
