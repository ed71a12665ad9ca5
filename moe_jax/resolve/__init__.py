"""From a config file to a run that has been checked: resolving, describing, counting."""
