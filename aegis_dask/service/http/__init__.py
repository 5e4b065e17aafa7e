"""The service: encrypted requests of several clients over HTTP, on one warm cluster.

`store` keeps clients, keys and jobs on disk; `fair` chooses whose job is next; `runner` runs jobs;
`app` is the HTTP interface, `uploads` takes bodies in, `listen` holds connections; `remote` is a
client of it, and `answers` reads what it is told.
"""
