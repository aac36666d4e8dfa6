"""Where handles go next: sources of motion, each in a module of its own. Import from these."""
