"""Audio of isolated sources: synthetic waveforms and folders of recordings."""
