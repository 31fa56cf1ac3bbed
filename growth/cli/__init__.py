"""The command line: growth plan, grow, verify, inspect, recipe, recipes, diagnose and advise."""
