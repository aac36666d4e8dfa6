"""The commands of `dynadrag`, each in a module of its own; `dynadrag_pipeline/cli.py` is the entry point."""
