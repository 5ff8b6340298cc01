"""What the device is and what it is good for."""
