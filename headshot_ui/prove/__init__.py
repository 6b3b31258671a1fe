"""``prove``: does everything this program does work on this computer, with these models? Measured, not assumed."""
