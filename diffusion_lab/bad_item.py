"""An item of a user's data set that cannot be used."""


class BadItem(ValueError):
    """Which one, and what is wrong, in one line for the user."""
