"""Layers that torch computes as one, recurrent networks and attention: here in their parts, which
gradients by example need."""
