"""The service: encrypted requests of several clients over HTTP, on one warm cluster.

`store` keeps clients, keys and jobs on disk; `fair` chooses whose job is next; `runner` runs jobs;
`app` is the HTTP interface, `remote` a client of it.
"""
