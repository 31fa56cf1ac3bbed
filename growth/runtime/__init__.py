"""How work is run on this machine: workers, interruptions, limits, directories and the terminal."""
