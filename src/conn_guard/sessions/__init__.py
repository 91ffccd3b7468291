"""The server's end: sessions, what to do about them, and the reaper."""
