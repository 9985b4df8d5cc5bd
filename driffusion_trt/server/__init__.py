"""Pictures as a service: an engine with a queue, and an HTTP API, a web page and metrics over it."""
