"""All durable state: the database and the blobs. The only package that opens either."""
