"""The one exception that means: the user's input is wrong, and this line says which and how to mend it."""


class UserError(ValueError):
    """Wrong input. Its text is one line naming the key or file and the fix; commands exit with code 2."""
