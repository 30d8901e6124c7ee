"""The catalog: the index of the log.

`schema` says what the tables are, `apply` turns an outcome into rows, `read` answers questions, `catalog` holds the
connections. Whatever is in the catalog came through `apply`, so the log can always make it again.
"""
