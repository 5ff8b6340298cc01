"""Self-checks: one a file, each a function from the settings to a finding. Feeds `appliance doctor`."""
