"""The one error a person should read: it names the key, path or id at fault and the remedy, and is shown without a traceback."""


class UserError(Exception):
    """Something the person who runs Soundmill can mend; the message says what and how."""
