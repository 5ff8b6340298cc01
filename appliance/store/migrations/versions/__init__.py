"""The history of the schema, one module a step; only ever added to."""
