"""The networks: a world model, an ensemble of them, and the arithmetic both are made of.

In and out: tensors on one device; gradients flow. Every operation is chosen so that the bits of a
row do not depend on the rows beside it. Touches neither disk nor network.
"""
