"""Telling people that an approval waits, is late or was decided: what is said, to whom, and that it arrives."""
