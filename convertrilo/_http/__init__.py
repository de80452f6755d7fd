"""One HTTP call of the client: engine, attempts, transport, rate limiter, credentials, redaction."""
