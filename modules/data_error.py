"""The one error of data that cannot be read as it is: it names the file and the row group at fault.

Raised when a data set is opened wherever that is possible, else when the rows concerned are read. It is a
`ValueError`, as all errors about arguments are.
"""

from __future__ import annotations


class DataError(ValueError):
    """Files or tables that cannot be read: missing, damaged, changed, or of a form that no tensor has."""
