"""The appliance's own resources, which OpenAI's API has no place for."""
