"""What ``render_music.py`` is made of: scores, their parts, and a voice that sings one of them."""
