"""Photographs and rendered scenes, and how they become a network's input."""
