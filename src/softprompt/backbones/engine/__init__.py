"""What the families share: the tree of segments, packing, attention, norms, products."""
