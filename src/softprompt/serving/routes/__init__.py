"""One file for each route. Each has `routes(service)`, which returns a router."""
