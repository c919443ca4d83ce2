"""What things are and what to decide. Pure: no socket, file, clock, GPU; stdlib and numpy only."""
