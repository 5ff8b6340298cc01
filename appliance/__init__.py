"""Fine-tuning appliance: a dataset in, a quantized model that answers out, on one box, offline."""

__version__ = "0.1.0"
