"""Folders of results: stems, trace, picture, summary."""
