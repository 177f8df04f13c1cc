"""An example of a package that extends Hansa; see its pyproject.toml for how Hansa finds what is here."""
