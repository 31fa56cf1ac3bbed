"""How work runs on this machine: workers, interruptions, limits of the system, directories and the terminal."""
