"""Data sets, formats in and out, image decoding, proposals and the built-in world."""
