"""The ground floor of all three packages: whole files, checks, options, errors of commands, travelling code."""
