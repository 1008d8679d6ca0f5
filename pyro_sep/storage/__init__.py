"""Files that are written whole or not at all, and whose damage is noticed."""
