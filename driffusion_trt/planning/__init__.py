"""What plans cost on the devices at hand, and which of them to run."""
