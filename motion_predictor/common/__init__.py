"""The ground floor of all packages: whole files, checks, options, pictures, errors of commands, travelling code."""
